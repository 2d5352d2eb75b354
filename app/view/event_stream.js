// Three races of gradio's client, see EVENT_STREAM in gradio_workarounds.py. Requests go to /queue/join, which returns
// an event_id; answers arrive on one event stream, /queue/data, which the server closes when no event is left; /cancel
// names an event by its function, fn_index, and by its id where the page knows it.
{
    const fetchNow = window.fetch;
    const announced = new Set();  // ids of events that the stream has mentioned
    const requests = new Map();  // event id -> {turn, fn_index, outputs} of its request
    const joining = new Set();  // promises of requests under way to /queue/join
    const shownTurn = {};  // output -> turn of the request whose answer it shows
    const cancelledTurn = {};  // fn_index -> turn of its last request before the page cancelled it
    let openStream = null, turns = 0;

    // A request is reported to the page once the stream has mentioned it or is over: the page opens a new stream only
    // if it knows of none, and would otherwise wait for an answer on a stream that just ended.
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

    // An answer to an earlier request does not replace the answer to a later one in the same output, and an answer to a
    // request that the page has cancelled is not shown.
    const withoutOutdated = async event => {
        if (!event.includes('"process_completed"')) return event;
        const message = JSON.parse(event.slice(5)), skip = {__type__: "update"};
        while (!requests.has(message.event_id) && joining.size) await Promise.race(joining);
        const {turn, fn_index, outputs} = requests.get(message.event_id) ?? {};
        requests.delete(message.event_id);
        message.output.data?.forEach((value, i) => {
            if (turn <= cancelledTurn[fn_index] || turn < shownTurn[outputs?.[i]]) message.output.data[i] = skip;
            else if (JSON.stringify(value) !== JSON.stringify(skip)) shownTurn[outputs?.[i]] = turn;
        });
        return `data: ${JSON.stringify(message)}`;
    };
    const inOrder = response => {
        let rest = "";
        const filter = new TransformStream({async transform(chunk, out) {
            const events = (rest + chunk).split("\n\n");
            rest = events.pop();
            let text = "";
            for (const event of events) text += `${await withoutOutdated(event)}\n\n`;
            if (text) out.enqueue(text);  // in one piece: the page may close the stream after the first
        }});
        const body = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(filter);
        return new Response(body.pipeThrough(new TextEncoderStream()), response);
    };

    const join = async (turn, call) => {
        const response = await fetchNow(...call), {fn_index} = JSON.parse(call[1].body);
        const {outputs} = window.gradio_config.dependencies.find(({id}) => id === fn_index);
        if (response.ok) requests.set((await response.clone().json()).event_id, {turn, fn_index, outputs});
        return response;
    };
    window.fetch = async (...call) => {
        const {pathname} = new URL(call[0].url ?? call[0], location.href);
        if (pathname.endsWith("/queue/data")) {
            const stream = openStream = {over: false, waiting: []};
            stream.wake = () => stream.waiting.splice(0).forEach(resume => resume());
            const fetching = fetchNow(...call);
            fetching.then(response => watch(stream, response.clone()), () => watch(stream));
            return fetching.then(inOrder);
        }
        if (pathname.endsWith("/cancel")) cancelledTurn[JSON.parse(call[1].body).fn_index] = turns;
        if (!pathname.endsWith("/queue/join")) return fetchNow(...call);
        const answering = join(++turns, call), done = answering.catch(() => {}).then(() => joining.delete(done));
        joining.add(done);
        const response = await answering, stream = openStream;
        if (response.ok && stream) {
            const {event_id} = await response.clone().json();
            while (!stream.over && !announced.has(event_id)) await new Promise(resume => stream.waiting.push(resume));
        }
        return response;
    };
}
