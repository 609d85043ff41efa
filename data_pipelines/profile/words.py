"""What names of columns say: words that hint at a label, a user, a time, a quantity or a category."""

import re
from collections.abc import Sequence

LABELS = (
    *("label", "target", "click", "clicked", "is_click", "converted", "conversion", "purchase", "purchased", "bought"),
    *("like", "liked", "watched", "y", "outcome", "response", "responded", "survived", "churn", "churned"),
    *("attributed", "opened", "accepted", "subscribed", "won", "rating", "ratings", "stars", "score"),
    *("geklickt", "gekauft"),
)
USERS = (
    *("user", "customer", "visitor", "member", "client", "account", "reader", "viewer", "listener", "player", "buyer"),
    *("shopper", "subscriber", "rater", "person", "session", "uid"),
    *("kunde", "kunden", "nutzer", "benutzer", "usuario", "cliente", "utilisateur"),
)
ITEMS = (
    *("item", "movie", "film", "product", "article", "video", "song", "track", "app", "book", "ad", "offer", "sku"),
    *("stock", "news", "hotel", "recipe", "game", "course", "listing", "property", "asin", "isbn", "post", "photo"),
    *("artikel", "produkt", "produkte", "produit", "producto"),
)
TIMES = (
    *("time", "timestamp", "ts", "date", "datetime", "when", "day", "at", "created", "updated", "zeit", "datum"),
    *("fecha", "hora"),
)
QUANTITIES = frozenset(
    (
        *("count", "num", "number", "amount", "price", "qty", "quantity", "age", "length", "duration", "size", "total"),
        *("affinity", "weight", "ratio", "share", "rate", "propensity", "probability", "seconds", "minutes", "days"),
        *("distance", "step", "steps", "balance", "income", "salary", "cost", "spent", "preis", "menge", "gains"),
        *("losses", "revenue", "width", "height", "bytes", "avg", "mean", "sum", "max", "min", "median"),
    )
)
CATEGORIES = frozenset(
    (
        *("id", "category", "cat", "type", "code", "country", "city", "region", "zip", "genre", "brand", "kind"),
        *("group", "segment", "lang", "language", "device", "os", "browser", "campaign", "store", "channel", "ip"),
        *("occupation", "job", "sector", "area", "district", "postcode", "postal", "plz", "model", "platform", "page"),
        *("url", "domain", "site", "status", "state", "carrier", "network", "vendor", "merchant", "seller", "author"),
        *("artist", "creator", "advertiser", "publisher", "placement", "tab", "topic", "tag", "airport", "airline"),
        *("route", "stadt", "land", "filiale", "version"),
    )
)
LISTS = (
    *("request", "impression", "query", "qid", "search", "srch", "serp", "slate", "list", "auction", "pageview"),
    *("decision", "pair", "comparison", "duel", "suche", "anfrage"),
)
BASKETS = (
    *("basket", "order", "invoice", "transaction", "receipt", "cart", "checkout", "purchase", "bill", "ticket", "txn"),
    *("rechnung", "bestellung", "bon", "beleg", "auftrag", "warenkorb", "factura", "commande", "pedido"),
)
SESSIONS = ("session", "visit", "visitor", "cookie", "sitzung")
KEYS = frozenset({"id", "key", "code", "no", "nr", "num", "number", "hash", "name", "uuid"})
"""Words that say that a column holds keys, and not whose."""

_COMPOUND = re.compile(r"(\w{2,}?)(id|nr|no|nummer|code|key|name)")
_SUBJECTS = frozenset((*USERS, *ITEMS, *LISTS, *BASKETS, *SESSIONS, *CATEGORIES))
_LEADING_QUANTITIES = frozenset({"num", "n", "count", "total", "avg", "mean", "sum", "max", "min", "number", "median"})


def words(name: str) -> list[str]:
    """The words of a name in lower case: ``StockCode`` and ``stock_code2`` are ``stock`` and ``code``.

    ``itemid`` is ``item`` and ``id``, because ``item`` is a word that is known.
    """
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    found = []
    for word in re.split(r"[^\w]|[\d_]", spaced.lower()):
        compound = _COMPOUND.fullmatch(word)
        found += [*compound.groups()] if compound and compound[1] in _SUBJECTS else [word] if word else []
    return found


def is_category(name: str) -> bool:
    """Whether a name says that its values are codes or keys, such as ``store`` and ``user_id``."""
    if is_quantity(name):
        return False
    found = words(name)
    subject = [word for word in found if word not in KEYS][-1:]
    return bool(set(found) & {*CATEGORIES, "key", "uuid"} or set(subject) & {*USERS, *ITEMS})


def is_quantity(name: str) -> bool:
    """Whether a name says that its values are amounts: the last word decides, as in ``item_count`` and ``price_code``.

    A first word such as ``num`` or ``total`` decides, too: ``num_items``.
    """
    found = words(name)
    if not found:
        return False
    if len(found) > 1 and found[-1] in KEYS:
        return False
    return found[-1] in QUANTITIES or (len(found) > 1 and found[0] in _LEADING_QUANTITIES)


def named(names: Sequence[str], hints: Sequence[str], *, exact: bool = False) -> str | None:
    """The shortest name with the first hint among its words; ``exact``: and no other but ``id`` or the like."""
    ordered = sorted(names, key=len)
    return next(
        (
            name
            for hint in hints
            for name in ordered
            if hint in words(name) and not (exact and set(words(name)) - {hint} - KEYS)
        ),
        None,
    )
