"""Word lists that reading and checking text needs: function words, negations, abbreviations, number words.

Why here: they are data, in the languages that people here use most; another language works without them, less sharply.
Not guaranteed: completeness. All entries are case-folded.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words that say nothing about what a sentence is about.
STOP = _words("""
    a an the this that these those it its they them their he she his her him we us our you your i my me and or but so as
    of in on at to for from by with about into over under between through during before after than then there here is
    are was were be been being am do does did done has have had having will would shall can could may might must should
    also which who whom whose what when where how why if because while both each all any some such only just very more
    most other same own up out off again further once too s t re ve ll d m
""")

NEGATIONS = _words("""
    not no never none neither nor cannot without hardly unless except don't doesn't didn't isn't aren't wasn't weren't
    won't wouldn't can't couldn't shouldn't hasn't haven't hadn't mustn't nobody nothing nowhere
""")
CJK_NEGATIONS = frozenset("不没沒未无無非否勿莫别別")
#: Words in which such a character denies nothing.
CJK_NOT_NEGATIONS = _words("不仅 不僅 不但 不同 不过 不過 不久 不断 不斷 不少 非常 无论 無論 别的 区别 分别 是否")

#: Words that claim how two statements hang together.
LINKS = _words("""
    so because since therefore thus hence after before until till when whenever if although though despite due by unless
    making causing leading resulting meaning instead
""")

#: Words that tie a sentence to the one before it: a summary should not jump with them.
LEANING = _words("""
    it this that these those they he she its their his her such however but and so then thus therefore also moreover
    furthermore here there both otherwise instead first second third fourth finally another other others
""")
#: The same, for text without spaces: what such a sentence begins with.
CJK_LEANING = tuple(_words("这 這 那 此 它 他 她 其 但 可是 然而 后来 後來 因此 所以 而且 另外 不过 不過 同时 同時"))

#: Words before a full stop that ends no sentence.
ABBREVIATIONS = _words("""
    mr mrs ms dr prof rev st jr sr gen col sgt capt lt hon inc ltd co corp no nos vol fig figs eq eqs sec ch p pp ed eds
    vs v cf e.g eg i.e ie al approx ca resp dept est jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu
    fri sat z.b d.h bzw usw nr abb u.a mme mlle
""")

_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_NUMBERS.split())}
