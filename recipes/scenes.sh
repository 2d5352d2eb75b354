#!/usr/bin/env bash
# Train the shipped models of scenes again (four hours on one core).
source "$(dirname "$0")/common.sh"
scenes+=(--results runs/records.jsonl)
teacher=(--size scenes-teacher --role teacher --split train-large "${scenes[@]}" --questions 3
    --weights tags=30,itc,itm,lm=2,vqa=4)
student=(--size scenes-student --init-from image=scenes/encoders/80x4/vit --split train-small "${scenes[@]}" --questions 3
    --steps 3000)

dlip train "${teacher[@]}" --init-from image=scenes/encoders/128x5/vit --start-term-at itm=1400 --steps 2600 \
    --out runs/scenes-teacher-first
dlip train "${teacher[@]}" --init-from runs/scenes-teacher-first --lr 1.5e-3 --warmup 50 --seed 1 --steps 1000 \
    --out runs/scenes-teacher-second
dlip train "${teacher[@]}" --init-from runs/scenes-teacher-second --lr 1.5e-3 --warmup 50 --seed 2 --steps 800 \
    --name teacher --out runs/scenes-teacher
dlip train "${student[@]}" --weights tags=30,itc,itm,lm,vqa=2 \
    --name student-undistilled --out runs/scenes-student-undistilled
dlip distill --teacher scenes/teacher "${student[@]}" --weights tags=30,itc,itm,lm,vqa=2,hr=5,at,kd,kd.vqa=2 \
    --center-states --fixed-teacher-space --cache --name student --out runs/scenes-student
