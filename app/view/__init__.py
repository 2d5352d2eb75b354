"""What the page looks like: templates, style sheets, scripts and HTML fragments."""
