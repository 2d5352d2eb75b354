#!/usr/bin/env bash
# Train the shipped models of photographs again: recipes/photos.sh FOLDER (five hours on one core).
source "$(dirname "$0")/common.sh"
need_photos "$@"
photos+=(--augment --flip --candidates 16 --results runs/records.jsonl)
teacher=(train --size photos-hybrid-teacher --role teacher --warmup 50 "${photos[@]}")
alone=(train --size photos-hybrid-student --tokenizer runs/photos-teacher --weights itc,lm,vqa --questions 2 "${photos[@]}"
    --data "$all")
distilled=(distill --size photos-hybrid-student --teacher runs/photos-teacher --center-states --fixed-teacher-space
    --cache-features 4 --batch-size 64 --backbone-stages 2 "${photos[@]}" --data "$all")

dlip "${teacher[@]}" --data "$captioned" --init-from backbone=imagenet --init-from "text=$minilm" --weights itc --lr 7e-4 \
    --backbone-lr 3e-4 --backbone-stages 2 --batch-size 128 --steps 900 --cache-features 4 --out runs/photos-teacher-itc
dlip "${teacher[@]}" --data "$all" --init-from runs/photos-teacher-itc --tokenizer runs/photos-teacher-itc \
    --weights itc=2,lm=2,vqa --lr 6e-4 --batch-size 96 --seed 1 --steps 800 --cache-features 2 --questions 2 \
    --name teacher --out runs/photos-teacher
dlip "${alone[@]}" --init-from backbone=imagenet --lr 2e-3 --warmup 100 --batch-size 64 --steps 2500 --cache-features 2 \
    --out runs/photos-undistilled-stage1
dlip "${alone[@]}" --init-from runs/photos-undistilled-stage1 --lr 1e-3 --backbone-lr 5e-4 --backbone-stages 2 --warmup 50 \
    --batch-size 96 --steps 3136 --seed 1 --cache-features 4 --name student-undistilled --out runs/photos-student-undistilled
dlip "${distilled[@]}" --init-from backbone=imagenet --lr 2e-3 --backbone-lr 1e-3 --warmup 100 --steps 6000 \
    --weights itc,kd.itc,hr.image=10,hr.text=10 --out runs/photos-student-stage1
dlip "${distilled[@]}" --init-from runs/photos-student-stage1 --lr 1e-3 --backbone-lr 5e-4 --warmup 50 --steps 1200 --seed 1 \
    --questions 2 --weights itc,lm,vqa,hr=5,hr.image=10,hr.text=10,at,kd.itc,kd.lm,kd.vqa --name student \
    --out runs/photos-student
for name in teacher student-undistilled student; do
    dlip export "runs/photos-$name" --to dlip --fp16 --shard-mb 40 --out "runs/photos/$name"
done
