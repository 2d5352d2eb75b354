"""The stream of answers, as the page hears it."""

STREAM = """<script>
{
    const ask = window.fetch, told = new Set(), asked = new Map(), joining = new Set(), shown = {};
    let open = null, turns = 0;
    const listen = async (stream, answer) => {
        let left = "";
        try {
            const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
            for (let part; !(part = await reader.read()).done; left = left.slice(-100)) {
                left += part.value;
                for (const [, name] of left.matchAll(/"event_id": ?"(\\w+)"/g)) told.add(name);
                stream.wake();
            }
        } catch {}
        setTimeout(() => {
            stream.over = true;
            stream.wake();
        });
    };
    const newest = async event => {
        if (!event.includes('"process_completed"')) return event;
        const said = JSON.parse(event.slice(5)), skip = {__type__: "update"};
        while (!asked.has(said.event_id) && joining.size) await Promise.race(joining);
        const {turn, places} = asked.get(said.event_id) ?? {};
        asked.delete(said.event_id);
        said.output.data?.forEach((value, i) => {
            if (turn < shown[places?.[i]]) said.output.data[i] = skip;
            else if (JSON.stringify(value) !== JSON.stringify(skip)) shown[places?.[i]] = turn;
        });
        return `data: ${JSON.stringify(said)}`;
    };
    const ordered = answer => {
        let left = "";
        const events = new TransformStream({async transform(text, out) {
            const parts = (left + text).split("\\n\\n");
            left = parts.pop();
            let whole = "";
            for (const part of parts) whole += `${await newest(part)}\\n\\n`;
            if (whole) out.enqueue(whole);  // as it came: after the first part the page may break the stream off
        }});
        const body = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(events);
        return new Response(body.pipeThrough(new TextEncoderStream()), answer);
    };
    const join = async (turn, call) => {
        const answer = await ask(...call), {fn_index} = JSON.parse(call[1].body);
        const {outputs} = window.gradio_config.dependencies.find(({id}) => id === fn_index);
        if (answer.ok) asked.set((await answer.clone().json()).event_id, {turn, places: outputs});
        return answer;
    };
    window.fetch = async (...call) => {
        const {pathname} = new URL(call[0].url ?? call[0], location.href);
        if (pathname.endsWith("/queue/data")) {
            const stream = open = {over: false, waiting: []};
            stream.wake = () => stream.waiting.splice(0).forEach(go => go());
            const asking = ask(...call);
            asking.then(answer => listen(stream, answer.clone()), () => listen(stream));
            return asking.then(ordered);
        }
        if (!pathname.endsWith("/queue/join")) return ask(...call);
        const answering = join(++turns, call), done = answering.catch(() => {}).then(() => joining.delete(done));
        joining.add(done);
        const answer = await answering, stream = open;
        if (answer.ok && stream) {
            const {event_id} = await answer.clone().json();
            while (!stream.over && !told.has(event_id)) await new Promise(go => stream.waiting.push(go));
        }
        return answer;
    };
}
</script>"""
"""Lets the page know that its request is in the queue when the stream of answers has told of it, or is over. Gradio's
server ends that stream when nothing is asked for; what was asked for since would never be answered where the page
learnt first of that, and then of the end: it opens a new stream only where it knows of none. And of what several events
show in one place the answer to the one that was asked last stays: an earlier one's that comes later is left out."""
