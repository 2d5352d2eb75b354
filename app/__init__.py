"""The app: teacher and student side by side in a browser. `dlip app` starts it, `app.page` builds it."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it when it is imported
for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_DEBUG"):  # set for others: visitors would have files, and Ctrl-C no effect
    os.environ.pop(name, None)
