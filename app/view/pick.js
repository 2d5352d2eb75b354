// js_on_load of a gr.HTML whose buttons carry data-index: a click stores the index in data-picked, see parts.picked, and
// presses the button if it can stay pressed.
element.addEventListener("click", event => {
    const button = event.target.closest("[data-index]");
    if (!button) return;
    element.querySelectorAll("[aria-pressed=true]").forEach(other => other.setAttribute("aria-pressed", "false"));
    if (button.ariaPressed) button.setAttribute("aria-pressed", "true");
    element.dataset.picked = button.dataset.index;
    trigger("click");
});
