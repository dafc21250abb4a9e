/* plugins/format/gguf: what its files share. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef APUS_FORMAT_GGUF_H
#define APUS_FORMAT_GGUF_H

#include <apus/blocks.h>
#include <apus/files.h>
#include <apus/model.h>
#include <apus/names.h>
#include <apus/plugin.h>

#include <stdlib.h>

/* Types of metadata values, as in the file. */
enum {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12
};

/* Types of tokens (tokenizer.ggml.token_type). */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5, TOKEN_BYTE = 6 };

#define GGUF_MAX_TOKENS (1u << 24) /* more than any vocabulary; keeps ids within int32 */

typedef struct gguf_value {
    const char *key;                 /* NUL-terminated; owner: the file */
    uint32_t type, item;             /* item: of an array */
    uint64_t count;                  /* of an array, else 1 */
    const unsigned char *data, *end; /* of a string: its bytes; else the encoded value or items */
} gguf_value;

/* Keys and tensor names, NUL-terminated. */
typedef struct gguf_names_block {
    struct gguf_names_block *next;
    size_t used;
    char text[16384];
} gguf_names_block;

typedef struct gguf_file {
    const apus_host *host;
    char path[4096];
    apus_map map;
    gguf_value *values;
    size_t n_values;
    gguf_names_block *strings;
    apus_names keys, names;
    apus_tensor_info *tensors;
    uint64_t count;
    unsigned char *used;
    void **turned; /* [count] rows put in Hugging Face's order by find(); NULL: not asked for */
    const char *architecture;
    /* made by card() */
    int card_made;
    apus_node *config, *generation_config, *tokenizer, *tokenizer_config, *templates, *metadata, *template_owner;
} gguf_file;

/* read.c */
apus_status gguf_open(gguf_file *f, const char *path, apus_error *err);
apus_status gguf_read(gguf_file *f, const unsigned char *bytes, size_t length, apus_error *err);
void gguf_close(gguf_file *f);
const gguf_value *gguf_get(const gguf_file *f, const char *key);
/* "%s" in key stands for the architecture. Missing or of another kind: the fallback. */
const gguf_value *gguf_arch_get(const gguf_file *f, const char *key);
int64_t gguf_int(const gguf_value *v, int64_t fallback);
double gguf_float(const gguf_value *v, double fallback);
int gguf_bool(const gguf_value *v, int fallback);
const char *gguf_string(const gguf_value *v, size_t *length); /* not NUL-terminated; NULL: not a string */
double gguf_item(const gguf_value *array, uint64_t i);        /* of an array of numbers; i < count */
int gguf_is_numbers(const gguf_value *v);                     /* an array of numbers */
/* The next string of an array of strings; *p begins at v->data. */
const char *gguf_next_string(const unsigned char **p, size_t *length);
apus_node *gguf_node(const gguf_file *f, const gguf_value *v, size_t most_items); /* owner: caller */
const apus_tensor_info *gguf_tensor(const gguf_file *f, const char *name);
const char *gguf_architecture_of(const char *model_type);             /* NULL: none */
int gguf_rows_are_paired(const char *architecture, const char *role); /* llama's q and k: rotation pairs lie side by side */

/* config.c: metadata <-> config.json's shape */
apus_status gguf_make_config(gguf_file *f, apus_error *err);
apus_status gguf_make_metadata(gguf_file *f);

/* rope.c */
/* inverse frequencies' divisors of rope_freqs.weight -> config's rope_scaling. */
apus_status gguf_read_rope(gguf_file *f, apus_node *config, int64_t rotary_dim, double theta, apus_error *err);
/* Divisors [rotary_dim / 2] that llama3's scaling makes (transformers: modeling_rope_utils). */
void gguf_llama3_factors(int64_t rotary_dim, double theta, double factor, double low, double high, double original, float *out);

/* tokenizer.c: vocabulary -> tokenizer.json's shape. Leaves tokenizer NULL, and says why, for kinds it does not know.
 */
apus_status gguf_make_tokenizer(gguf_file *f, apus_error *err);

/* pretokenizers.c */
/* The pre_tokenizer node for llama.cpp's name of it; NULL: unknown. */
apus_node *gguf_pre_tokenizer(const apus_node_api *node, const char *name, size_t length, int *ignore_merges, int *add_bos);
/* The inverse: llama.cpp's name for a pre_tokenizer node; NULL: none. */
const char *gguf_pre_tokenizer_name(const apus_node_api *node, const apus_node *pre_tokenizer);

/* write.c */
apus_status gguf_write(const apus_host *host, const apus_node *params, const char *path, const apus_model_export *model, apus_error *err);
/* Metadata being written. */
typedef struct gguf_writer {
    const apus_host *host;
    unsigned char *bytes;
    size_t length, capacity;
    uint64_t count; /* of key-value pairs */
    int failed;     /* memory ran out */
} gguf_writer;
void gguf_put(gguf_writer *w, const void *bytes, size_t n);
void gguf_put_u32(gguf_writer *w, uint32_t v);
void gguf_put_u64(gguf_writer *w, uint64_t v);
void gguf_put_text(gguf_writer *w, const char *s, size_t n);
void gguf_key(gguf_writer *w, const char *key, uint32_t type);
void gguf_key_u32(gguf_writer *w, const char *key, uint32_t v);
void gguf_key_f32(gguf_writer *w, const char *key, double v);
void gguf_key_bool(gguf_writer *w, const char *key, int v);
void gguf_key_text(gguf_writer *w, const char *key, const char *s, size_t n);
void gguf_key_array(gguf_writer *w, const char *key, uint32_t item, uint64_t count);

/* write_tokenizer.c: tokenizer.json's shape -> tokenizer.* keys. vocab_rows: of the embedding. */
apus_status gguf_write_tokenizer(gguf_writer *w, const apus_model_card *card, int64_t vocab_rows, apus_error *err);

#endif
