#!/usr/bin/env bash
# Compare the terms of distillation on photographs, three seeds: recipes/photo_terms.sh FOLDER (ten hours on one core).
source "$(dirname "$0")/common.sh"
need_photos "$@"
terms=(--size photos-hybrid-student --init-from backbone=imagenet --data "$all" --on-error skip --test-split val
    --latency-repeats 0 --steps 1500 --batch-size 64 --optimizer muon --lr 2e-3 --schedule cosine --weight-decay 0.05
    --eval-every 500 --results runs/photo-terms.jsonl)
rows=(
    alone:itc augmented:itc logits:itc,kd.itc image:itc,hr.image=20 text:itc,hr.text=20
    all:itc,kd.itc,hr.image=10,hr.text=10
    caption-alone:lm caption-augmented:lm caption-logits:lm,kd.lm caption-image:lm,hr.image=20
    caption-decoder:lm,hr.decoder=20 caption-maps:lm,at.decoder_self=10,at.decoder_cross=10
    caption-all:lm,kd.lm,hr.image=10,hr.decoder=10,at.decoder_self=5,at.decoder_cross=5
)

for seed in 0 1 2; do
    for row in "${rows[@]}"; do
        case $row in
            *alone:*) how=(train --tokenizer photos/teacher --cache-features 1) ;;
            *augmented:*) how=(train --tokenizer photos/teacher --cache-features 4 --augment --flip) ;;
            *) how=(distill --teacher photos/teacher --center-states --fixed-teacher-space --cache --cache-features 1) ;;
        esac
        dlip "${how[@]}" "${terms[@]}" --weights "${row#*:}" --seed $seed --name "${row%%:*}" \
            --out "runs/photo-terms/${row%%:*}-$seed"
    done
done
