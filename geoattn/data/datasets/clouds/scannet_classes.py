"""Classes and scenes of ScanNet, as its authors publish them."""

from __future__ import annotations

from geoattn.data.datasets.clouds.cloud_set import number_ranges

VALIDATION = number_ranges(
    "11 15 19 25 30 46 50 63-64 77 81 84 86 88 95 100 131 139 144 146 149 153 164 169 187 193 196 203 207-208 217 "
    "221-222 231 246 249 251 256-257 277-278 300 304 307 314 316 328-329 334 338 342-343 351 353-357 377-378 382 389 "
    "406 412 414 423 426-427 430 432 435 441 458 461-462 474 488 490 494 496 500 518 527 535 549-550 552-553 558-559 "
    "565 568 574-575 578 580 583 591 593 595 598-599 606-609 616 618 621 629 633 643-645 647-648 651-653 655 658 660 "
    "663-665 670-671 678 684-686 689-690 693 695-697 699-702 704"
)
"""Numbers of the scenes to validate on; other scenes up to 706 are for training, 707 to 806 for the test."""

NYU40_IDS = number_ranges("1-12 14 16 24 28 33-34 36 39")
"""Ids of the 20 classes among the 40 of NYUv2."""

_NAMES_20 = (
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, desk, curtain, "
    "refrigerator, shower curtain, toilet, sink, bathtub, otherfurniture"
)
NAMES_20 = tuple(_NAMES_20.split(", "))
"""Names of the 20 classes."""

IDS_200 = number_ranges(
    "1-11 13-19 21-24 26-29 31-36 38-42 44-52 54-59 62-80 82 84 86-90 93 95-107 110 112 115-116 118 120-122 125 128 "
    "130-132 134 136 138-141 145 148 154-157 159 161 163 165-166 168-170 177 180 185 188 191 193 195 202 208 213-214 "
    "221 229-230 232-233 242 250 261 264 276 283 286 300 304 312 323 325 331 342 356 370 392 395 399 408 417 488 540 "
    "562 570 572 581 609 748 776 1156 1163-1176 1178-1191"
)
"""Ids of the 200 classes of ScanNet200, in the column ``id`` of scannetv2-labels.combined.tsv."""

_NAMES_200 = (
    "wall, chair, floor, table, door, couch, cabinet, shelf, desk, office chair, bed, pillow, sink, picture, "
    "window, toilet, bookshelf, monitor, curtain, book, armchair, coffee table, box, refrigerator, lamp, kitchen "
    "cabinet, towel, clothes, tv, nightstand, counter, dresser, stool, cushion, plant, ceiling, bathtub, end table, "
    "dining table, keyboard, bag, backpack, toilet paper, printer, tv stand, whiteboard, blanket, shower curtain, "
    "trash can, closet, stairs, microwave, stove, shoe, computer tower, bottle, bin, ottoman, bench, board, washing "
    "machine, mirror, copier, basket, sofa chair, file cabinet, fan, laptop, shower, paper, person, paper towel "
    "dispenser, oven, blinds, rack, plate, blackboard, piano, suitcase, rail, radiator, recycling bin, container, "
    "wardrobe, soap dispenser, telephone, bucket, clock, stand, light, laundry basket, pipe, clothes dryer, guitar, "
    "toilet paper holder, seat, speaker, column, bicycle, ladder, bathroom stall, shower wall, cup, jacket, storage "
    "bin, coffee maker, dishwasher, paper towel roll, machine, mat, windowsill, bar, toaster, bulletin board, "
    "ironing board, fireplace, soap dish, kitchen counter, doorframe, toilet paper dispenser, mini fridge, fire "
    "extinguisher, ball, hat, shower curtain rod, water cooler, paper cutter, tray, shower door, pillar, ledge, "
    "toaster oven, mouse, toilet seat cover dispenser, furniture, cart, storage container, scale, tissue box, light "
    "switch, crate, power outlet, decoration, sign, projector, closet door, vacuum cleaner, candle, plunger, "
    "stuffed animal, headphones, dish rack, broom, guitar case, range hood, dustpan, hair dryer, water bottle, "
    "handicap bar, purse, vent, shower floor, water pitcher, mailbox, bowl, paper bag, alarm clock, music stand, "
    "projector screen, divider, laundry detergent, bathroom counter, object, bathroom vanity, closet wall, laundry "
    "hamper, bathroom stall door, ceiling light, trash bin, dumbbell, stair rail, tube, bathroom cabinet, cd case, "
    "closet rod, coffee kettle, structure, shower head, keyboard piano, case of water bottles, coat rack, storage "
    "organizer, folded chair, fire alarm, power strip, calendar, poster, potted plant, luggage, mattress"
)
NAMES_200 = tuple(_NAMES_200.split(", "))
"""Names of the 200 classes."""
