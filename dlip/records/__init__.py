"""Run records: one JSON object per run, one line each in `results/*.jsonl`, also readable as a table.

**Keys of a record** (schema 3), in this order:

- schema: 3. id: unique. created: UTC, ISO 8601. name: the same for all seeds of one setup. role: "teacher",
  "undistilled", "distilled" or "quantized" (a teacher in int8).
- command: the command line of the run, for information. config: the resolved configuration ("model", "train" and
  everything else that decides the result). config_hash: its hash without the seed (`config_hash`). seed.
- data, split: the test set (`count_test_images` gives its size). train_images: number of training images.
- code: "version", "commit" and "modified" (uncommitted changes of the package); the last two are null outside a git
  checkout. python, torch, transformers: versions. releases: package -> version (`dlip.common.machine.PACKAGES`).
- device. machine: "cpu" and "gpu" (names), "instructions" (of the CPU), "cores". threads: per process. processes.
  wall_s: seconds of training.
- losses: "step" and each loss term as lists of equal length, at most 100 points.
- metrics: "retrieval", "captioning" and "vqa" of `dlip.evaluate`, "attention" of
  `dlip.evaluation.attention_maps.measure`; null if not measured.
- efficiency: `dlip.cost.count.summary`, with "latency" of `dlip.cost.latency.compare_latency` and "memory" of
  `dlip.cost.memory.memory`.
- samples: up to 12 of {"image_id", "caption", "references", "questions", "answers", "truth"}; questions
  and truth are lists of equal length, answers may be shorter.
- notes: name of a task or metric -> why it is null, or what limits it; "data" -> number of skipped faulty items;
  "steps" -> number of skipped training steps.
- evaluations (of runs evaluated during training): "data", "split" and number of "images"; "scores": "step" and each
  score, by its column of `load`, as lists of equal length, at most 100 points; "teacher": the teacher's scores on the
  same images, empty without one. Captions are scored without Java.
- bounds (of `dlip evaluate --bounds` only): "floor" and "ceiling", what a blind guesser and the ground truth score on
  the test set, each with "retrieval", "captioning" and "vqa" as in metrics (`dlip.evaluation.bounds`).
- evaluation (of `dlip evaluate` and of a grid's teachers only): its options.
- outcomes: the items that the scores are computed from, each a column of float16, compressed, in base64 (`outcomes`
  unpacks them), in the order of the test images. Per image with captions: tr1 (0 or 1), cider (x 100) and facts (the
  numbers of `dlip.data.scenes.facts.count_facts`, row by row). Per caption: ir1, and joint_ir1 by the
  sum of ITC's logit and ITM's log-odds. Per question: vqa (0 to 1) and
  vqa_type (index of its type among the sorted ones). Per image: captions and questions, how many of each it has.
  `image_sums` and `score_of_sums` compute the scores of any sample of the images.
- history: the runs that produced the models this run started from (initial weights, teacher, tokenizer, or the model
  that `command` only evaluated), earliest first: {"folder", "command" (null if unknown), "config", "wall_s"}.
- inputs: SHA-256 of the teacher's weights (null without one), of the student's initial weights, of its vocabulary, of
  the training data and of the test data (their `fingerprint`); the number of training images and the machine, threads,
  releases and code with which training began.
- ablation (runs of a grid only): {"hash"} of everything that decides the result except the seed
  (`dlip.experiments.ablation.identity`). quick: true if the run was too short for its scores to mean anything.

A failed run of a grid is a line {"schema", "failed": reason, "created", "name", "role", "seed", "ablation"}; `failures`
returns these lines and `read` skips them. Records of schemas 1 and 2 are upgraded on reading (`upgrade`).

**Columns of `load`**, one row per run. First text and counts:

- id, created, name, role, seed, data, split, train_images, command, config_hash, wall_s, device, threads, torch,
  transformers, quick: as above. test_images: number of images measured; 0 if unknown.
- model: description of its sizes. init_from: the models, or parts of them, whose weights initialized this one.
  latency_setup: how the latency was measured; "" if it was not.

Then numbers, NaN if the record lacks them:

- tr1 tr5 tr10 ir1 ir5 ir10: recall of text retrieval (image -> text) and image retrieval (text -> image), in %:
  re-ranked by ITM as in BLIP, or by ITC alone if "notes" say so. joint_tr1 joint_ir1: re-ranked by ITC's logit plus
  ITM's log-odds. itc_tr1 itc_ir1: by ITC alone.
- bleu4 meteor rougeL cider spice: captioning scores x 100.
- facts_f1: F1 of what captions of scenes state, in %, mean over objects, attributes and relations. facts.<kind>: of
  one kind.
- vqa: soft accuracy in %. vqa_mean: mean over types of question. vqa.<type>: of one type.
- pointing: how often the cross-attention map of an object's word has its maximum on the object, in %. mass: how much of
  the map's weight on patches is on the object, in %. Both are measured while a caption is read by the fusion encoder.
  pointing_other, mass_other: the same for the scene's other objects. divergence: Jensen-Shannon divergence, in bits,
  from the teacher's maps, over all words and with [CLS] as a patch. <figure>_decoder: while a caption is generated.
- params_m: millions of stored parameters. weights_mb: their megabytes in the model's precision. flops_g: GFLOPs of one
  image and one text. latency_ms, latency_p95_ms: median and 95th percentile. latency_share: median in % of the
  teacher's, timed in alternation with it; 100 for a teacher. params_m_paper, macs_g_paper: as the paper counts. Without
  a teacher, divergence and latency_share compare with the model whose tokenizer is used.
- w.<term>: weight of a loss term; 0 if the run did not use it.
"""

from dlip.records.compare import composite, floors, latest_runs, retention, summary
from dlip.records.migration import upgrade
from dlip.records.outcomes import image_sums, outcomes, score_of_sums
from dlip.records.reading import contains, count_test_images, failures, frame, load, read, record_of_run
from dlip.records.schema import FIGURES, HEADLINE_SCORES, TABLE_SCORES, config_hash
from dlip.records.write import append, failed_run, new_record

__all__ = [
    "FIGURES", "HEADLINE_SCORES", "TABLE_SCORES", "append", "composite", "config_hash", "contains",
    "count_test_images", "failed_run", "failures", "floors", "frame", "image_sums", "latest_runs", "load", "new_record",
    "outcomes", "read", "record_of_run", "retention", "score_of_sums", "summary", "upgrade",
]  # fmt: skip
