#!/usr/bin/env bash
# Train the image and text encoders that students of scenes are initialized from.
source "$(dirname "$0")/common.sh"
large=(--split train-large "${scenes[@]}" --results runs/records.jsonl)

for size in 32x4 48x4 64x4 80x4 104x4 112x4 128x5; do
    dlip train --size "scenes-student:image_width=${size%x*},image_layers=${size#*x}" --weights tags --steps 1500 \
        "${large[@]}" --out "runs/vit-$size"
    dlip export "runs/vit-$size" --to vit --fp16 --out "dlip/weights/scenes/encoders/$size"
done
dlip train --size scenes-student:image_width=32,image_layers=1,fusion_layers= --weights lm --steps 1500 "${large[@]}" \
    --out runs/bert-80x2
dlip export runs/bert-80x2 --to bert --fp16 --out dlip/weights/scenes/encoders/80x2
