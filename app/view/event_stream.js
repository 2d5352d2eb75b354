// A race of gradio's client: requests go to /queue/join, which returns an event_id; answers arrive on one event stream,
// /queue/data, which the server closes when no event is left. A request is reported to the page once the stream has
// mentioned it or is over: the page opens a new stream only if it knows of none, and would otherwise wait for an answer on
// a stream that just ended. The only code that touches gradio's private parts; it can go when gradio's client does so.
{
    const fetchNow = window.fetch;
    const announced = new Set();  // ids of events that the stream has mentioned
    let openStream = null;

    const watch = async (stream, response) => {
        let rest = "";
        try {
            const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
            for (let part; !(part = await reader.read()).done; rest = rest.slice(-100)) {
                rest += part.value;
                for (const [, id] of rest.matchAll(/"event_id": ?"(\w+)"/g)) announced.add(id);
                stream.wake();
            }
        } catch {}
        setTimeout(() => {
            stream.over = true;
            stream.wake();
        });
    };

    window.fetch = async (...call) => {
        const {pathname} = new URL(call[0].url ?? call[0], location.href);
        if (pathname.endsWith("/queue/data")) {
            const stream = openStream = {over: false, waiting: []};
            stream.wake = () => stream.waiting.splice(0).forEach(resume => resume());
            const fetching = fetchNow(...call);
            fetching.then(response => watch(stream, response.clone()), () => watch(stream));
            return fetching;
        }
        if (!pathname.endsWith("/queue/join")) return fetchNow(...call);
        const response = await fetchNow(...call), stream = openStream;
        if (response.ok && stream) {
            const {event_id} = await response.clone().json();
            while (!stream.over && !announced.has(event_id)) await new Promise(resume => stream.waiting.push(resume));
        }
        return response;
    };
}
