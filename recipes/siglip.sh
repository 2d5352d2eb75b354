#!/usr/bin/env bash
# Train a small SigLIP on scenes, and students from it and without it, three seeds (1.5 hours on one core).
source "$(dirname "$0")/common.sh"
student=(--size scenes-student --tokenizer scenes/teacher --init-from image=scenes/encoders/80x4/vit --split train-small
    --test-split test-5k "${scenes[@]}" --results runs/siglip.jsonl --steps 3000)

python recipes/siglip.py runs/siglip
for seed in 0 1 2; do
    dlip train "${student[@]}" --weights itc --seed $seed --name alone --out runs/siglip-alone-$seed
    dlip distill --teacher runs/siglip "${student[@]}" --weights itc,kd.itc,hr.image=5,hr.text=5 \
        --center-states --fixed-teacher-space --seed $seed --name "from SigLIP" --out runs/siglip-student-$seed
done
