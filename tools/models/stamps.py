#!/usr/bin/env python3
"""Makes the image data sets of the benchmarks from the fetched Tux Paint stamps.

    .deps/venv-peers/bin/python tools/models/stamps.py

Writes .deps/data/stamps/calib.npz (128 images), eval.npz (all the other
unlabelled ones, unseen by calibration) and labelled.npz (photos mapped by hand
to ImageNet classes; `accepted` lists every class that counts as right, -1
pads). Each holds `input` float32 [n,3,224,224], RGB scaled to -1..1, as
EfficientNet-lite0 takes it: the stamp centred on a white square 1.15 times its
longer side, resized bicubically.
"""
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
STAMPS, OUT = ROOT / ".deps/raw/stamps/usr/share/tuxpaint/stamps", ROOT / ".deps/data/stamps"
SIZE, MARGIN, CALIB = 224, 1.15, 128
SMALLEST = 2500  # pixels; smaller stamps are icons
MAX_ACCEPTED = 8

# folder -> stamp -> the ImageNet classes (0-based) that count as right
LABELS = {
    "animals/birds": {"hen": [8], "chicken_profile": [8], "rooster": [7], "ostrich": [9], "magpie": [18], "vulture": [23], "owl": [24], "peacock": [84],
                      "drake": [97], "pelican": [144], "penguin": [145], "pink_flamingo": [130], "gander": [99], "tucan": [96], "rainbow-lorikeet": [90]},
    "animals/marsupials": {"koala": [105], "kangaroo": [104], "wombat": [106]},
    "animals/insects": {"grasshopper": [311, 312], "mantis": [315], "fly": [308], "hoverfly": [308], "bee": [309], "Brown_slug": [114]},
    "animals/lizards": {"iguana": [39]},
    "animals/amphibians": {"frog": [30, 31, 32], "frog-1": [30, 31, 32]},
    "animals/mammals/rodents": {"beaver": [337], "marmot": [336], "rabbit": [330, 331, 332], "rabbit-2": [330, 331, 332], "squirrel": [335]},
    "animals/mammals/camel": {"camel": [354], "dromedary": [354]},
    "animals/mammals/bears": {"european-bear": [294], "bear": [294, 295]},
    "animals/mammals/bears/toys": {"edward_bear": [850]},
    "animals/mammals": {"wildboar": [342], "pig": [341], "pig_golden": [341], "pig_golden2": [341], "hippopotamus": [344], "elephant": [385, 386, 101],
                        "badger": [362], "echidna": [102], "ferret": [356, 357, 358, 359], "rabbit_little": [330, 331, 332], "hedgehog": [334]},
    "animals/mammals/aquatic": {"sea_lion": [150], "otter": [360], "orca": [148]},
    "animals/mammals/equines": {"zebra": [340], "horse": [339]},
    "animals/mammals/apes": {"chimp": [367], "gorilla": [366]},
    "animals/mammals/cats": {"tiger": [292], "tiger_sumatran": [292], "lion": [291], "lion-2": [291]},
    "animals/mammals/bovines": {"bison": [347], "ram": [348, 349], "bull": [345], "sheep": [348, 349]},
    "animals/mammals/dogs": {"dingo": [273], "fox": [277, 278, 280]},
    "animals/fish": {"lobster": [122, 123], "clownfish": [393], "lionfish": [396]},
    "food/fruit": {"pineapple": [953], "orange": [950], "orange_seville": [950], "mandarine": [950], "sliced_orange": [950], "strawberry": [949],
                   "Strawberry2": [949], "lemon": [951], "banana": [954], "pomegranate": [957], "apple_granny_smith": [948], "apple_green": [948]},
    "food/vegetables": {"broccoli": [937], "mushroom": [947], "pepper": [945], "yellowpepper": [945], "corn": [987, 998]},
    "food": {"pizza": [963]},
    "household/dishes": {"teapot": [849], "mug": [504], "pitcher_small": [725]},
    "household": {"garbagecan": [412], "wheelie_bin": [412], "toilet": [861]},
    "household/tools": {"hammer": [587], "spade": [792], "paintbrush_large": [696]},
    "clothes/hats": {"sombrero": [808]},
    "clothes": {"t_sock": [806], "t_tshirt": [610]},
    "town": {"usps_mailbox": [637]},
    "town/roadsigns": {"stoplight_03_green": [920], "stoplight_02_yellow": [920], "stoplight_01_red": [920], "yield": [919], "stop": [919], "no_uturn": [919]},
    "plants/mushrooms": {"cep": [997], "cep-1": [997], "cep-2": [997]},
    "hobbies/music/string": {"guitar_electric": [546], "guitar_electric_bass": [546], "guitar_classical": [402], "guitar2": [402, 546], "cello": [486], "violin": [889]},
    "hobbies/music/brass": {"trumpet": [513]},
    "hobbies/music/wind": {"bassoon": [432]},
    "hobbies/music/percussion": {"drumkit": [541], "drum_tomtom_floor": [541]},
    "hobbies": {"camera_35mm": [732, 759], "binoculars": [447]},
    "medical": {"stethoscope": [823], "syringe": [845], "bandage_adhesive": [419]},
    "sports": {"basketball": [430], "soccer": [805], "tennis_ball": [852], "tennis_racket": [752], "rugby_goal_posts": [768]},
    "vehicles": {"garbagetruck": [569], "wheel_tractor": [866], "7spoke256": [479]},
    "vehicles/emergency": {"firetruck": [555]},
    "vehicles/flight": {"balloon360": [417]},
    "vehicles/flight/planes": {"747": [404]},
    "vehicles/auto": {"sportscar2": [817], "sedan": [817, 436, 468, 511], "truck": [717, 867]},
    "vehicles/cycle": {"pink_tricycle": [870]},
    "vehicles/masstransit": {"green_korean_bus": [654, 779, 874]},
    "seasonal": {"candle": [470]},
    "seasonal/christmas": {"stocking": [496]},
    "seasonal/halloween": {"jackolantern_mean": [607]},
    "seasonal/easter": {"butterfly": [321, 322, 323, 324, 325, 326]},
}


def read(path):
    """float32 [3,224,224] in -1..1, or None for a stamp that is too small or unreadable."""
    try:
        image = Image.open(path).convert("RGBA")
    except OSError:
        return None
    if image.width * image.height < SMALLEST:
        return None
    white = Image.new("RGBA", image.size, (255,) * 4)
    white.alpha_composite(image)
    side = int(max(image.size) * MARGIN)
    square = Image.new("RGB", (side, side), (255,) * 3)
    square.paste(white.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((SIZE, SIZE), Image.BICUBIC), np.float32)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)


def write(name, **arrays):
    tmp = OUT / (name + ".part")
    with open(tmp, "wb") as f:
        np.savez(f, **arrays)
    tmp.rename(OUT / name)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    labelled = {STAMPS / folder / (name + ".png"): ids for folder, names in LABELS.items() for name, ids in names.items()}
    images, accepted = [], []
    for path, ids in labelled.items():
        x = read(path)
        if x is not None:
            images.append(x)
            accepted.append(ids + [-1] * (MAX_ACCEPTED - len(ids)))
    write("labelled.npz", input=np.stack(images), accepted=np.array(accepted), label=np.array(accepted)[:, 0])

    rest = [x for x in (read(p) for p in sorted(STAMPS.rglob("*.png")) if p not in labelled) if x is not None]
    order = np.random.RandomState(0).permutation(len(rest))
    write("calib.npz", input=np.stack([rest[i] for i in order[:CALIB]]))
    write("eval.npz", input=np.stack([rest[i] for i in order[CALIB:]]))
    print("stamps: %d to calibrate, %d to compare, %d labelled" % (CALIB, len(rest) - CALIB, len(images)))


if __name__ == "__main__":
    main()
