// Small images show their pixels as squares (style.css), and an image that the browser cannot show is marked.
for (const kind of ["load", "error"]) document.addEventListener(kind, ({target: image}) => {
    if (image.tagName !== "IMG") return;
    image.toggleAttribute("data-tiny", image.naturalWidth <= 128);
    image.closest("#image")?.toggleAttribute("data-unshown", kind === "error");
}, true);
// Tab leaves a dropdown: gradio would open its list again while the focus moves on.
document.addEventListener("keydown", event => {
    if (event.key === "Tab" && event.target.matches?.("input[role=combobox]")) event.stopPropagation();
}, true);
// A file dropped on an image replaces it: gradio would only remove the image.
document.addEventListener("drop", event => {
    const panel = event.target.closest?.("#image"), remove = panel?.querySelector("[aria-label='Remove Image']");
    const files = new DataTransfer(), dropped = event.dataTransfer?.files[0];
    if (!remove || !dropped) return;
    event.preventDefault();
    event.stopPropagation();
    files.items.add(dropped);
    remove.click();
    const waiting = setInterval(() => {
        const input = panel.querySelector("input[type=file]");
        if (!input) return;
        clearInterval(waiting);
        input.files = files.files;
        input.dispatchEvent(new Event("change", {bubbles: true}));
    }, 20);
}, true);
// A missing camera is reported: gradio would wait for one without end.
addEventListener("unhandledrejection", event => {
    const camera = document.querySelector("#image [title='grant webcam access'] .wrap");
    if (!camera) return;
    event.preventDefault();
    camera.lastChild.textContent = "There is no camera that this page may use; upload an image instead.";
});
// For screen readers: groups of choices are named by their labels, and charts by their findings.
new MutationObserver(() => {
    for (const group of document.querySelectorAll("fieldset:not([aria-label])"))
        group.setAttribute("aria-label", group.querySelector("[data-testid=block-info]")?.textContent.trim() || "");
    for (const chart of document.querySelectorAll(".js-plotly-plot:not([role])")) {
        chart.setAttribute("role", "figure");
        chart.setAttribute("aria-labelledby", `${chart.closest(".block[id]")?.id}-finding`);
    }
}).observe(document, {childList: true, subtree: true});
