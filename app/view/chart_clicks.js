// js_on_load of a gr.HTML around a plotly chart: gradio does not report clicks on its points. A click stores the point's
// name in data-picked.
new MutationObserver(() => {
    const chart = element.querySelector(".js-plotly-plot");
    if (!chart || !chart.on || chart.listening === chart.on) return;
    chart.listening = chart.on;
    chart.on("plotly_click", event => {
        const name = event.points[0].customdata;
        if (!name) return;
        element.dataset.picked = name;
        trigger("click");
    });
}).observe(element, {childList: true, subtree: true});
