#!/usr/bin/env bash
# Train photo students from trained and random weights, three seeds: recipes/photo_init.sh FOLDER (eight hours on one core).
source "$(dirname "$0")/common.sh"
need_photos "$@"
student=(distill --teacher photos/teacher --size photos-hybrid-student:text_width=384,text_heads=12 --test-split val
    --center-states --fixed-teacher-space --cache-features 4 --weights itc,kd.itc,hr.image=10,hr.text=10 --lr 1e-3
    --backbone-lr 1e-3 --warmup 100 --batch-size 64 --steps 1000 --eval-every 250 --latency-repeats 0
    "${photos[@]}" --augment --flip --candidates 16 --data "$all")
image=(--init-from backbone=imagenet)
text=(--init-from "text=$minilm")

for seed in 0 1 2; do
    for row in neither text image both; do
        case $row in
            neither) from=() ;;
            text) from=("${text[@]}") ;;
            image) from=("${image[@]}") ;;
            both) from=("${image[@]}" "${text[@]}") ;;
        esac
        dlip "${student[@]}" "${from[@]}" --seed $seed --name "init-$row" --results runs/photo-init.jsonl \
            --out "runs/photo-init/$row-$seed"
    done
done
