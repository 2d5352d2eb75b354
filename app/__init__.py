"""The app: teacher and student side by side in a browser. `dlip app` starts it, `page.build` builds it."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads both when it is imported
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_DEBUG"):  # would serve files to visitors, and disable Ctrl-C
    os.environ.pop(name, None)
