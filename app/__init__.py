"""The app: teacher and student side by side in a browser. `dlip app` starts it, `app.page` builds it."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it when it is imported
