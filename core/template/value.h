/*
 * core/template/value: what the template language computes with: Python's values, as far as templates meet them,
 * in an arena that lives as long as one rendering. Knows no syntax.
 *
 * Failure leaves by longjmp to the one setjmp of the compilation or rendering that owns the tbase: every byte lies in
 * its arena, so nothing is lost and no function below needs to return a status.
 */
#ifndef APUS_CORE_TEMPLATE_VALUE_H
#define APUS_CORE_TEMPLATE_VALUE_H

#include <apus/base.h>
#include <setjmp.h>
#include <stdbool.h>

/* ---------------------------------------------------------------- memory and failure */

typedef struct tpos {
    uint32_t line, column; /* from 1; column in code points */
} tpos;

typedef struct tbig {
    struct tbig *next, *previous;
    size_t bytes;
} tbig;

/* Bump allocation; large pieces are their own, so that a growing buffer can move and give its old place back. */
typedef struct tarena {
    tbig list; /* every chunk and large piece */
    char *at;  /* next free byte of the current chunk */
    size_t left;
    size_t used, limit;
} tarena;

typedef struct tbase {
    jmp_buf leave;
    apus_error *err;
    apus_status status;
    const char *name; /* what errors call the template */
    tpos at;          /* what is being read or evaluated */
    tarena arena;
} tbase;

#if defined(__GNUC__)
#define T_NORETURN __attribute__((noreturn))
#else
#define T_NORETURN
#endif

void apus_tpl_arena_init(tarena *a, size_t limit);
void apus_tpl_arena_free(tarena *a);
void *apus_tpl_alloc(tbase *b, size_t bytes); /* zeroed, 16-byte aligned; never NULL */
void *apus_tpl_array(tbase *b, size_t n, size_t item);
void *apus_tpl_grow(tbase *b, void *old, size_t old_bytes, size_t bytes); /* contents kept, the rest undefined */
T_NORETURN APUS_PRINTF(3, 4) void apus_tpl_fail(tbase *b, apus_status status, const char *fmt, ...);

/* ---------------------------------------------------------------- values */

typedef enum tkind {
    T_MISSING, /* no value at all: an argument that was not given, a name nobody set */
    T_UNDEFINED,
    T_NONE,
    T_BOOL,
    T_INT,
    T_FLOAT,
    T_STR,
    T_LIST,
    T_TUPLE,
    T_DICT,
    T_RANGE,
    T_VIEW,      /* dict.keys(), .values(), .items() */
    T_GENERATOR, /* what map, select, reverse, … give: can be walked once */
    T_NAMESPACE,
    T_LOOP,
    T_MACRO,
    T_FUNCTION,
    T_METHOD,
    T_CYCLER,
    T_JOINER
} tkind;

typedef struct tstr tstr;
typedef struct tlist tlist;
typedef struct tdict tdict;
typedef struct tctx tctx;
typedef struct tcall tcall;

typedef struct tval {
    tkind kind;
    union {
        int64_t i; /* T_BOOL, T_INT */
        double f;
        tstr *s;
        tlist *l; /* T_LIST, T_TUPLE */
        tdict *d; /* T_DICT, T_NAMESPACE */
        struct tundefined *u;
        struct trange *range;
        struct tview *view;
        struct tgenerator *gen;
        struct tloop *loop;
        struct tmacro *macro;
        const struct tfunction *fn;
        struct tmethod *method;
        struct tcycler *cycler;
        struct tjoiner *joiner;
        void *p;
    };
} tval;

/* Where bytes came from: bit 0: out of the variables; the bits above: the number of the generation block that
 * wrote them, from 1 (0: none). */
typedef uint32_t ttag;
enum { T_OWN = 0, T_CONTENT = 1 };

typedef struct trun {
    size_t end; /* the run reaches up to this byte; it begins where the one before ends */
    ttag tag;
} trun;

/* Immutable. */
struct tstr {
    const char *bytes;
    size_t length; /* bytes */
    size_t chars;  /* code points; (size_t)-1: not counted yet */
    const trun *runs;
    size_t n_runs; /* 0: all of it has `tag` */
    ttag tag;
    bool markup; /* safe HTML, as markupsafe.Markup: what is joined to it is escaped */
};

struct tlist {
    tval *items;
    size_t n;
    bool content; /* it came out of the variables: so do the brackets when it is printed */
    bool group;   /* a pair of the groupby filter: has .grouper and .list */
};

struct tdict {
    tval *keys, *values;
    size_t n, capacity;
    uint32_t *index; /* open addressing over `keys`, from 1; NULL while small */
    size_t index_size;
    bool content;
};

struct tundefined {
    const char *message; /* what using it says; NULL: made from the rest when needed */
    const char *name;
    size_t length;
    tkind owner; /* T_MISSING: a variable */
};

struct trange {
    int64_t start, stop, step, n;
};

/* Wraps rather than overflows: the bound past a range's end need not fit. */
static inline int64_t apus_tpl_range_at(const struct trange *r, int64_t i)
{
    return (int64_t)((uint64_t)r->start + (uint64_t)i * (uint64_t)r->step);
}

typedef enum { T_KEYS, T_VALUES, T_ITEMS } tview_kind;
struct tview {
    tdict *dict;
    tview_kind what;
};

struct tgenerator {
    tlist *items;
    size_t next;
};

struct tcycler {
    tlist *items;
    size_t next;
};

struct tjoiner {
    tstr *separator;
    bool used;
};

/* The arguments of a call. */
struct tcall {
    const tval *args;
    size_t n;
    tstr *const *names; /* of the keyword arguments */
    const tval *values;
    size_t n_named;
};

struct tfunction {
    const char *name;
    tval (*call)(tctx *c, const tcall *call);
};

typedef struct tmethod_def {
    const char *name;
    tval (*call)(tctx *c, tval self, const tcall *call); /* NULL: Python has it, templates may not use it */
    const char *refused;                                 /* why, when call is NULL */
} tmethod_def;

struct tmethod {
    tval self;
    const tmethod_def *def;
};

/* How far one rendering may go. */
typedef struct tlimits {
    uint64_t iterations; /* of all loops together */
    uint64_t work;       /* evaluated nodes and touched bytes, in rough nanoseconds */
    size_t bytes;        /* of one string: the output too */
    size_t memory;       /* of everything */
    uint32_t depth;      /* nested evaluations */
} tlimits;

/* One rendering. The evaluator's own state follows it in eval.c. */
struct tctx {
    tbase base;
    tlimits limits;
    uint64_t iterations, work;
    uint32_t depth;
    int64_t now;
};

/* ---------------------------------------------------------------- making */

static inline tval apus_tpl_bool(bool v)
{
    return (tval){.kind = T_BOOL, .i = v};
}
static inline tval apus_tpl_int(int64_t v)
{
    return (tval){.kind = T_INT, .i = v};
}
static inline tval apus_tpl_float(double v)
{
    return (tval){.kind = T_FLOAT, .f = v};
}
static inline tval apus_tpl_none(void)
{
    return (tval){.kind = T_NONE};
}
static inline tval apus_tpl_missing(void)
{
    return (tval){.kind = T_MISSING};
}
static inline tval apus_tpl_sval(tstr *s)
{
    return (tval){.kind = T_STR, .s = s};
}
static inline tval apus_tpl_lval(tlist *l)
{
    return (tval){.kind = T_LIST, .l = l};
}
static inline tval apus_tpl_tval(tlist *l)
{
    return (tval){.kind = T_TUPLE, .l = l};
}
static inline tval apus_tpl_dval(tdict *d)
{
    return (tval){.kind = T_DICT, .d = d};
}

tstr *apus_tpl_str(tbase *b, const char *bytes, size_t length, ttag tag); /* the bytes are shared, not copied */
tstr *apus_tpl_literal(tbase *b, const char *text);                       /* own text; shared */
tlist *apus_tpl_list(tbase *b, size_t capacity);                          /* n = 0 */
void apus_tpl_push(tbase *b, tlist *l, size_t *capacity, tval v);
tval apus_tpl_pair(tbase *b, tval first, tval second);
tval apus_tpl_generator(tbase *b, tlist *items);
tdict *apus_tpl_dict(tbase *b, size_t capacity);
tval apus_tpl_undefined(tbase *b, const char *message);
tval apus_tpl_undefined_attribute(tbase *b, tkind owner, const tstr *name);
tval apus_tpl_from_node(tctx *c, const apus_node *n, ttag tag);

/* ---------------------------------------------------------------- using (value.c) */

void apus_tpl_spend(tctx *c, uint64_t work);
void apus_tpl_enter(tctx *c); /* one level deeper; apus_tpl_leave takes it back */
void apus_tpl_leave(tctx *c);
T_NORETURN void apus_tpl_use_undefined(tctx *c, tval u);
const char *apus_tpl_type(tval v); /* Python's name of its type */
bool apus_tpl_truth(tval v);
bool apus_tpl_equal(tctx *c, tval a, tval b);
int apus_tpl_compare(tctx *c, tval a, tval b, const char *op); /* <0, 0, >0; 2: unordered (nan). Fails as Python does */
bool apus_tpl_less(tctx *c, tval a, tval b);
bool apus_tpl_contains(tctx *c, tval container, tval item);
uint64_t apus_tpl_hash(tctx *c, tval v); /* fails: unhashable */
bool apus_tpl_hashable(tval v);
tval apus_tpl_dict_get(tctx *c, const tdict *d, tval key); /* T_MISSING when absent; key hashable */
tval apus_tpl_dict_find(tctx *c, const tdict *d, const char *key, size_t length);
void apus_tpl_dict_set(tctx *c, tdict *d, tval key, tval value);
int64_t apus_tpl_length(tctx *c, tval v);        /* Python's len(); -1 when it has none */
tval apus_tpl_index(tctx *c, tval v, int64_t i); /* i-th of a list, tuple, string or range; T_MISSING outside */
tval apus_tpl_slice(tctx *c, tval v, tval start, tval stop, tval step);
tval apus_tpl_binary(tctx *c, int op, tval a, tval b);              /* op: + - * / % 'f' for // and 'p' for ** */
tval apus_tpl_getattr(tctx *c, tval v, tstr *name);                 /* v.name */
tval apus_tpl_getitem(tctx *c, tval v, tval key);                   /* v[key] */
tval apus_tpl_attribute(tctx *c, tval v, const tstr *name);         /* Python's getattr alone; T_MISSING when there is none */
tval apus_tpl_path(tctx *c, tval v, tval attribute, tval fallback); /* "a.b.0" as filters' attribute= reads it */

/* Walking: list, tuple, dict (its keys), string, range, view, generator, undefined. */
typedef struct titer {
    tval of;
    size_t next, at; /* item; byte of a string */
} titer;
bool apus_tpl_iterable(tval v);
titer apus_tpl_iterate(tctx *c, tval v); /* fails: not iterable */
bool apus_tpl_next(tctx *c, titer *it, tval *item);
tlist *apus_tpl_to_list(tctx *c, tval v);

/* ---------------------------------------------------------------- strings (string.c) */

/* Builds a string, keeping where each byte came from. */
typedef struct tbuf {
    tctx *c;
    char *bytes;
    size_t length, capacity;
    trun *runs;
    size_t n_runs, run_capacity;
    bool markup;
} tbuf;

void apus_tpl_put(tbuf *b, const char *bytes, size_t length, ttag tag);
void apus_tpl_put_text(tbuf *b, const char *text, ttag tag);
void apus_tpl_put_char(tbuf *b, uint32_t c, ttag tag);
void apus_tpl_put_part(tbuf *b, const tstr *s, size_t from, size_t to); /* bytes [from, to) with their tags */
void apus_tpl_put_str(tbuf *b, const tstr *s);
void apus_tpl_put_escaped(tbuf *b, const tstr *s); /* & < > ' " unless it is markup already */
tstr *apus_tpl_take(tbuf *b);

tstr *apus_tpl_part(tctx *c, const tstr *s, size_t from, size_t to); /* shares the bytes */
ttag apus_tpl_tag_at(const tstr *s, size_t byte);
size_t apus_tpl_chars(tstr *s);
size_t apus_tpl_offset(tstr *s, size_t index);                                 /* byte where the index-th code point begins; length past the end */
uint32_t apus_tpl_decode(const char *bytes, size_t length, size_t *at);        /* an invalid byte b reads as 0xDC00 + b */
size_t apus_tpl_find(const tstr *s, size_t from, size_t to, const tstr *what); /* byte; (size_t)-1: not there */
bool apus_tpl_is(const tstr *s, const char *text);
int apus_tpl_str_compare(const tstr *a, const tstr *b);
tstr *apus_tpl_concat(tctx *c, tstr *a, tstr *b);
tstr *apus_tpl_strip(tctx *c, tstr *s, const tstr *chars, int sides); /* chars NULL: white space; 1 left, 2 right */
tstr *apus_tpl_replace(tctx *c, tstr *s, const tstr *old, const tstr *with, int64_t count);
tstr *apus_tpl_case(tctx *c, tstr *s, char how); /* u upper, l lower, c capitalize, t str.title, s swapcase, f casefold */
tlist *apus_tpl_splitlines(tctx *c, tstr *s, bool keep);
tlist *apus_tpl_split(tctx *c, tstr *s, const tstr *separator, int64_t most, bool from_right);
bool apus_tpl_is_space(uint32_t c);
bool apus_tpl_is_printable(uint32_t c);
bool apus_tpl_is_word(uint32_t c); /* \w */
char apus_tpl_case_of(uint32_t c); /* u upper, l lower, t title; 0: has no case */

/* ---------------------------------------------------------------- text of values (print.c) */

void apus_tpl_print(tbuf *b, tval v);          /* str(v) */
void apus_tpl_repr(tbuf *b, tval v, ttag tag); /* repr(v); tag: of brackets and numbers */
tstr *apus_tpl_to_str(tctx *c, tval v);        /* str(v), a string as it is */
void apus_tpl_float_repr(char out[40], double v);
bool apus_tpl_parse_float(const tstr *s, double *v);                          /* as Python's float(str) */
bool apus_tpl_parse_int(const tstr *s, int base, int64_t *v, bool *overflow); /* as int(str, base) */
typedef struct tjson {
    bool ascii, sort;
    const tstr *indent, *item, *key; /* indent NULL: one line */
} tjson;
void apus_tpl_json(tbuf *b, tval v, const tjson *how);

/* Python's % and str.format (format.c). */
tval apus_tpl_percent(tctx *c, tstr *format, tval args);
tval apus_tpl_format(tctx *c, tstr *format, const tcall *call);

/* ---------------------------------------------------------------- what templates call by name */

/* Put a call's arguments into `out` by the names in `params` ("a b c"); those left out are T_MISSING. */
void apus_tpl_bind(tctx *c, const char *what, const char *params, size_t required, const tcall *call, tval *out);
tstr *apus_tpl_need_str(tctx *c, const char *what, tval v);
int64_t apus_tpl_need_int(tctx *c, const char *what, tval v);
bool apus_tpl_flag(tval v, bool fallback); /* truth; T_MISSING: fallback */

const tmethod_def *apus_tpl_method(tkind kind, const tstr *name); /* methods.c; NULL: no such attribute */
typedef struct tfilter {
    const char *name;
    tval (*call)(tctx *c, tval value, const tcall *call);
} tfilter;
const tfilter *apus_tpl_filter(const char *name, size_t length); /* filters*.c; NULL: unknown */
typedef struct ttest {
    const char *name;
    bool (*call)(tctx *c, tval value, const tcall *call);
} ttest;
const ttest *apus_tpl_test(const char *name, size_t length);              /* tests.c; NULL: unknown */
const struct tfunction *apus_tpl_global(const char *name, size_t length); /* functions.c; NULL: unknown */

#endif
