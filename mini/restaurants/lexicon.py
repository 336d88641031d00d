"""The values for the tables, and the words and sentence patterns for the texts. generate.py combines them.

Braces mark a slot: a value ({food}), a phrase from one of the Writer's methods ({np}), or either with its article
({a np}).
"""

# ----------------------------------------------------------------------------- values

# Our short names for E2E's eight fields, in E2E's order.
FIELDS = {
    "name": "name", "type": "eatType", "food": "food", "price": "priceRange", "rating": "customer rating",
    "area": "area", "family": "familyFriendly", "near": "near",
}  # fmt: skip
VALUES = {
    "type": ("restaurant", "pub", "coffee house", "bistro", "tea room", "inn"),
    "food": (
        "Thai", "Greek", "Lebanese", "French", "Indian", "English", "Japanese", "Italian", "Spanish", "Mexican",
        "Turkish", "Korean", "Moroccan", "Ethiopian", "Portuguese", "Polish", "Caribbean", "Austrian", "vegetarian",
        "vegan",
    ),
    "price": ("cheap", "moderate", "high", "under £15", "£15-20", "£20-30", "£30-45", "over £45"),
    "rating": ("low", "average", "high", "1 out of 5", "2 out of 5", "3 out of 5", "4 out of 5", "5 out of 5"),
    "area": ("riverside", "town centre", "old town", "harbour", "seafront", "market square"),
    "family": ("yes", "no"),
    "near": (
        "Hollins Park", "Quill Street", "Tanner's Bridge", "Penrow Station", "Ashby Hall", "Merrow Castle", "Dove Lane",
        "Fallow Green", "St Aldric's", "Brill Gardens", "Weaver Street", "Lark Library", "Sorrel Wharf",
        "Kestrel House", "Northgate Baths", "Pennant Row", "Halden Market", "Cutler's Yard", "Lindow College",
        "Osier Lock", "Thornby Mill", "Garrick Lane", "Tern Quay", "Bell Corner", "Whitlow Arcade", "Chandler Street",
        "Ferris & Son", "Marram Pier", "Juniper Walk", "Vesper Hill",
    ),
}  # fmt: skip
# Names are composed of these words. Those after the bar are reserved for names that no training table has.
ADJECTIVES = (
    "Copper Crooked Velvet Quiet Painted Salty Clever Sleepy Paper Hidden Merry Rusty"
    " | Amber Humming Stubborn Tall Freckled"
)
NOUNS = (
    "Kettle Heron Lantern Badger Fiddle Acorn Ladle Finch Barrel Walnut Tinker Clog"
    " | Otter Compass Spoon Bramble Juggler"
)
OWNERS = (
    "Pellow Tansley Orrin Quenby Haverley Draycott Zafira Melisso Kumari Osric Benita Ludo"
    " | Yarwood Imelda Castell Vasquo Ottoline"
)

# ----------------------------------------------------------------------------- words

# The keys are facts, with the value or the kind of value if the words depend on it. A "meal" is food and price
# together, a "place" is area and near.

# Predicates. "serves (serving) Thai food": "It serves Thai food" and, after a noun, "a pub serving Thai food".
VERBS = {
    "food": (
        "serves (serving) {food} dishes", "cooks (that cooks) {food} food", "offers (offering) {food} cooking",
        "has (with) {a food} menu", "has (with) {food} food on the menu", "specialises (specialising) in {food} dishes",
    ),
    "meal cheap": (
        "serves (serving) cheap {food} dishes", "offers (offering) cheap {food} meals",
        "has (with) a cheap {food} menu",
    ),
    "meal moderate": (
        "serves (serving) {food} dishes at moderate prices", "offers (offering) moderately priced {food} dishes",
        "has (with) a moderately priced {food} menu",
    ),
    "meal high": ("serves (serving) {food} dishes at high prices", "charges (charging) high prices for {food} food"),
    "meal pounds": (
        "serves (serving) {food} dishes for {price}", "offers (offering) {food} meals for {price} a head",
        "charges (charging) {price} for {food} dishes",
    ),
    "price cheap": ("is (that is) cheap to eat at", "offers (offering) cheap meals", "has (with) a cheap menu"),
    "price moderate": (
        "keeps (that keeps) its prices moderate", "charges (charging) moderate prices",
        "has (with) a moderately priced menu",
    ),
    "price high": (
        "asks (that asks) high prices", "charges (charging) high prices", "has (with) prices on the high side",
    ),
    "price pounds": (
        "charges (charging) {price} a head", "has (with) meals for {price}",
        "offers (offering) meals for {price} a head",
    ),
    "rating word": (
        "has (with) {a rating} score from customers", "gets (that gets) {rating} marks from its guests",
        "has (with) {rating} ratings from its guests",
    ),
    "rating number": (
        "scores (that scores) {rating} with its guests", "has (with) {rating} from its guests",
        "has (with) {rating} overall from its guests", "earns (that earns) {rating} from its diners",
    ),
    "family yes": (
        "welcomes (that welcomes) parents and children", "welcomes (that welcomes) families of any size",
        "makes (that makes) families welcome",
        "is (that is) good with children", "suits (that suits) the whole family",
    ),
    "family no": (
        "is (that is) hardly family-friendly", "is (that is) not right for children",
        "is (that is) not meant for families",
        "has (with) nothing for children", "does (that does) not suit families", "does (that does) not seat children",
    ),
    "place": ("stands () {place}", "lies () {place}"),
}  # fmt: skip
# Clauses: complete sentences, or after "where" ("a pub where families are welcome").
WHERE = {
    "food": (
        "the cooking is {food}", "the kitchen cooks {food} food", "{food} dishes are on the menu", "the menu is {food}",
    ),
    "meal cheap": ("{food} food comes cheap", "{food} dishes are cheap"),
    "meal moderate": ("{food} dishes are moderately priced", "{food} food comes at moderate prices"),
    "meal high": ("{food} food comes at high prices",),
    "meal pounds": (
        "{food} meals cost {price}", "{food} dishes come at {price} a head", "{food} food costs {price} a head",
    ),
    "price cheap": ("meals come cheap", "eating is cheap"),
    "price moderate": ("you pay moderate prices", "meals come at moderate prices"),
    "price high": ("you pay high prices", "prices are on the high side"),
    "price pounds": ("a meal costs {price}", "meals come to {price} a head", "you pay {price} a head"),
    "family yes": ("families are made welcome", "there is room for the whole family", "you can bring the children"),
    "family no": ("children are not catered for", "there is nothing for children", "you cannot bring the children"),
}  # fmt: skip
# Complete sentences only.
REMARKS = {
    "food": ("Expect {food} food.", "The dishes are {food}."),
    "meal pounds": ("Expect to pay {price} for {food} food.",),
    "price moderate": ("Expect moderate prices.", "You will find the prices moderate."),
    "price high": ("Expect high prices.", "The bill will be high."),
    "price pounds": ("Expect to pay {price} a head.", "Allow {price} a head.", "Reckon on {price} for a meal."),
    "rating word": (
        "Its guests give it {a rating} rating.", "Its score with customers is {rating}.",
        "Guests give it {rating} marks.",
    ),
    "rating number": (
        "Guests give it {rating}.", "Its score with customers is {rating}.", "Its guests rate it at {rating}.",
    ),
    "family yes": ("It is a place for the whole family.", "Bring the children along."),
    "family no": ("It is better to leave the children at home.", "Do not bring the children."),
    "place": ("You will come across it {place}.", "It is to be found {place}.",),
}  # fmt: skip
# Adjectives: "a riverside pub", but not "a market square pub".
BEFORE_NOUN = {
    "price cheap": ("cheap",), "price moderate": ("moderately priced",), "price high": ("high-priced",),
    "rating high": ("highly rated",),
    "family yes": ("family-friendly",), "area riverside": ("riverside",), "area town centre": ("town centre",),
    "area seafront": ("seafront",), "area harbour": ("harbour",),
}  # fmt: skip
IN_AREA = {
    "riverside": ("by the riverside", "along the riverside"), "town centre": ("in the town centre",),
    "old town": ("in the old town",),
    "harbour": ("by the harbour", "at the harbour"), "seafront": ("on the seafront",),
    "market square": ("on the market square",),
}  # fmt: skip
NEAR = ("near {near}", "close to {near}", "not far from {near}", "a short walk from {near}")
# What someone may look for.
WISHES = {
    "food": ("{food} food", "{a food} meal"), "meal cheap": ("cheap {food} food", "a cheap {food} meal"),
    "meal moderate": ("moderately priced {food} food", "{food} food at moderate prices"),
    "meal pounds": ("{food} food for {price}", "{a food} meal for {price}"),
}  # fmt: skip
# Values that are praise and values that are blame, for "but" and "although".
GOOD = {"price": ("cheap",), "rating": ("high", "4 out of 5", "5 out of 5"), "family": ("yes",)}
BAD = {"price": ("high",), "rating": ("low", "1 out of 5", "2 out of 5"), "family": ("no",)}

# ----------------------------------------------------------------------------- first sentences

# By the fact that the pattern itself states ("any": none). {np} is a noun phrase, {noun} its part up to the noun,
# {does} a predicate, {place} area and near, {wish} what someone may look for, {having} a noun phrase that may follow
# "with", {praise} and {blame} predicates.
OPENINGS = {
    "any": (
        "{name} is {a noun} that {does}.", "{name} is {a noun} that {does}.", "{name}, {a np}, {does}.",
        "{name}, {a np}, {does}.", "One {np} is {name}.", "{a noun} called {name} {does}.", "{name} {does}.",
        "Looking for {wish}? {name} may be the answer.", "Looking for {wish}? {name} is worth a thought.",
        "If you want {wish}, try {name}.", "Are you after {wish}? Then think of {name}, which {does}.",
        "If you are after {wish}, there is {name}, which {does}.", "If you would like {wish}, think of {name}.",
        "Anyone who wants {wish} can go to {name}.", "{a noun} called {name} stands {place}.",
        "You will find {name}, {a np}, {place}.", "{place} lies {name}, {a np}.", "{place} stands {name}, {a np}.",
        "{name}, {place}, is {a noun} that {does}.", "{place}, {a noun} called {name} {does}.",
        "{place}, {name} {does}.", "With {having}, {name} is {a np}.", "With {having}, {name} {does}.",
        "Although it {blame}, {name} {praise}.", "{name} {praise}, although it {blame}.",
    ),
    "type": (
        "{name}, {a type}, {does}.", "The {type} called {name} {does}.", "{name} is the name of {a type} {place}.",
    ),
    "food": (
        "{food} food is on the menu at {name}, {a np}.", "You can eat {food} food at {name}, {a np}.",
        "For {food} food there is {name}, {a np}.", "The cooking is {food} at {name}, {a np}.",
    ),
    "meal cheap": ("Cheap {food} food is on the menu at {name}, {a np}.",),
    "meal pounds": (
        "You can eat {food} food for {price} at {name}, {a np}.", "{food} food costs {price} at {name}, {a np}.",
    ),
    "price cheap": ("Eating is cheap at {name}, {a np}.", "For a cheap meal, try {name}, {a np}."),
    "price moderate": ("Expect moderate prices at {name}, {a np}.", "Prices are moderate at {name}, {a np}."),
    "price high": ("Expect high prices at {name}, {a np}.", "Prices are high at {name}, {a np}."),
    "price pounds": (
        "A meal at {name}, {a np}, costs {price}.", "For {price} a head you can eat at {name}, {a np}.",
        "Expect to pay {price} at {name}, {a np}.",
    ),
    "rating word": ("Guests give {rating} marks to {name}, {a np}.",),
    "rating number": ("Guests give {rating} to {name}, {a np}.", "Rated {rating} by its guests, {name} {does}."),
    "family yes": ("Families are welcome at {name}, {a np}.", "You can take the children to {name}, {a np}."),
    "family no": (
        "Children are not catered for at {name}, {a np}.", "Leave the children at home when you go to {name}, {a np}.",
    ),
}  # fmt: skip
