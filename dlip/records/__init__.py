"""Run records: one JSON object a run, a line each in `results/*.jsonl`, and the same as a table.

**A record** (schema 2) holds, in this order:

- schema (2), id (unique), created (UTC, ISO 8601), name (the same for all seeds of one thing), role ("teacher",
  "undistilled" or "distilled").
- command (exactly as typed), config (resolved: "model", "train" and whatever else decides the result),
  config_hash (`config_hash`), seed.
- data, split (what was measured on; the outcomes tell how many pictures), train_images (how many pictures the model
  could learn from).
- code ("version"; "commit" and whether the package was "modified" since, null outside a git checkout), python, torch,
  transformers (versions), releases (name -> version of `dlip.common.machine.PACKAGES`), device, machine ("cpu",
  "gpu": their
  names, "instructions": of the cpu, "cores"), threads (of each process), processes, wall_s (seconds of training).
- losses: "step" and each term as lists of one length, at most 100 points.
- metrics: "retrieval", "captioning" and "vqa" as `dlip.evaluate` yields them, "attention" as
  `dlip.evaluation.attention_maps.measure` does; null where not measured.
- efficiency: as `dlip.cost.count.summary` yields it, with "latency" as `dlip.cost.latency.latency` does and "memory" as
  `dlip.cost.memory.memory`.
- samples: up to 12 of {"image_id", "caption", "references", "questions", "answers", "truth"}; the last three are lists
  of one length.
- notes: why a metric is null, by its name; under "data" how many faults of the data were left out, under "steps"
  how many steps of training.
- outcomes: what the scores are the means of, each a column of float16, compressed and in base64 (`outcomes` reads it).
  In the order of the pictures measured: tr1 (0 or 1) and cider (x 100), one a picture with captions; ir1, one a
  caption; vqa (0 to 1), one a question; captions and questions, how many of them each picture has.
- history: the runs that the model comes from, by its weights, teacher and words, or that `command` only measured, the
  earliest first, each {"folder", "command" (null where none was kept), "config", "wall_s" (of training)}.
- inputs: SHA-256 of the "teacher"'s weights (null for none), of the student's at the "start", of its vocabulary's
  "words", of the "data" and the "test" (their `fingerprint`); "images", how many it learnt from; "threads",
  "torch", "releases", "gpu", "instructions" and "code", that training began with.
- of a grid's run, ablation: {"hash"}, of all that decides the result but the seed
  (`dlip.experiments.ablation.identity`); and quick: true where the run was too short for its scores to mean anything.

A run of a grid that failed is a line {"schema", "failed": why, "created", "name", "role", "seed", "ablation"}, which
`failures` gives and `read` leaves out.

**Columns** of `load`, one row a run: id, created, name, role, seed, data, split, test_images (how many were measured
on; 0 where the record does not tell), train_images, model (sizes in words), command, config_hash, wall_s, device,
threads, torch, transformers, quick, init_from (the parts, or all, that began at another model's weights, and whose),
timed (how its latency was, in words; "" where it was not); then numbers, NaN where the record has none:

- tr1 tr5 tr10 ir1 ir5 ir10: recall of texts by pictures and of pictures by texts, in %: re-ranked by ITM, or by ITC
  alone where "notes" say so and in all runs of grids.
- bleu4 meteor rougeL cider spice: caption scores x 100.
- vqa: soft accuracy in %. vqa.<type>: of one type of question.
- pointing, mass: how often the cross-attention of a word that names an object has its maximum there, and how much of
  what it gives to patches lies there, in %, when a caption is read; pointing_other, mass_other: of the scene's other
  objects. divergence: Jensen-Shannon, over all words and with what [CLS] gets, from the teacher's maps (or those of
  the model whose tokenizer it has), in bits. <it>_decoder: when the caption is said.
- params_m: millions of stored parameters. flops_g: GFLOPs of one picture and one text. latency_ms, latency_p95_ms:
  median and 95th percentile of the timed task; latency_share: the median in % of the teacher's (or of that of the model
  whose tokenizer it has), timed by turns; 100 of a teacher. params_m_paper, macs_g_paper: in the paper's count.
- w.<term>: weight of a loss term; 0 where the run did not have it.
"""

from dlip.records.compare import MEASURED, latest, retention, sources, summary, timed_alike, twin
from dlip.records.outcomes import outcomes
from dlip.records.read import ABOUT, contains, export, failures, frame, load, read, record_of_run, test_images
from dlip.records.schema import HEADLINE_SCORES, NUMBERS, upgrade
from dlip.records.write import append, config_hash, failure, new_record, thin

__all__ = [
    "ABOUT", "HEADLINE_SCORES", "MEASURED", "NUMBERS", "append", "config_hash", "contains", "export", "failure",
    "failures", "frame", "latest", "load", "new_record", "outcomes", "read", "record_of_run", "retention", "sources",
    "summary", "test_images", "thin", "timed_alike", "twin", "upgrade",
]  # fmt: skip
