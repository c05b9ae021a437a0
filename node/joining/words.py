"""The words of join codes: short to say, hard to mishear, in plain English.

256 of them, so a word is 8 bits. Any two differ in at least three letters and within their first four, so that a slip
of the pen or the ear gives no other word of the list; a test holds it.
"""

from typing import Final

_TEXT: Final = """
acorn admiral airport almond anchor antler apple apron arcade armour artist atlas autumn avenue badge bakery
balcony bamboo banjo barrel basil basket beacon beaver bellow bench bicycle biscuit bishop blossom bonfire
border bottle bronze brother brush buffalo bundle butter cabin cactus camel canyon captain caravan castle cedar
cherry chimney cinema circus clover cobalt coconut compass copper cottage cousin cradle crater cricket crystal
cupboard cushion dagger daisy desert diamond diary dinner dolphin domino donkey dragon drizzle drummer eagle
earth echo eclipse elephant ember emerald empire engine envelope evening fabric family farmer feather fennel
fiddle figure forest fortune fossil fountain fragment freckle galaxy gallery garden garlic giant giraffe glacier
goblet granite gravel guitar hamster harvest helmet horizon hospital hostel husky igloo indigo island ivory
jaguar jasmine jelly jigsaw journal kayak kidney kingdom kiosk kitchen koala ladder lagoon lantern lava lecture
lemon library lilac linen lizard lobster locket lunar magazine magnet mammoth marble matrix meadow mentor
mercury midnight mirror mitten monday monsoon muffin museum mustard napkin nectar needle nickel novel nutmeg
october olive onion opal orange orbit orchard oxygen palace parrot pasture pebble pelican pencil pigeon pirate
planet plaster plum polar poppy portal potato pottery prairie pretzel pumpkin purple quarry quilt quiver rabbit
radish reef rhubarb ribbon rosemary ruby sailor sandal scarlet school scooter sculptor shelter silver sketch
slipper soprano spinach squirrel stable steam street summit sunset swallow syrup teapot temple theatre thimble
thunder tiger toffee tractor trolley trumpet tulip tundra twilight umbrella unicorn vanilla village violin
volcano voyage vulture waffle walnut whisper window wombat yacht yogurt zebra zigzag
"""
WORDS: Final = tuple(_TEXT.split())
