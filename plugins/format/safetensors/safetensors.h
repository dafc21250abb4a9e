/* plugins/format/safetensors: what its files share. */
#ifndef APUS_FORMAT_SAFETENSORS_H
#define APUS_FORMAT_SAFETENSORS_H

#include <apus/model.h>
#include <apus/names.h>
#include <apus/plugin.h>
#include <apus/safetensors.h>

/* An opened Hugging Face folder, single .safetensors file, or tokenizer file. */
typedef struct folder {
    const apus_host *host;
    char path[4096];
    apus_safetensors *shards;
    size_t n_shards;
    const apus_tensor_info **tensors; /* of all shards, in order */
    unsigned char *used;              /* [count] */
    size_t count;
    apus_names by_name;
    apus_node *config, *generation_config, *tokenizer, *tokenizer_config, *templates, *metadata;
    apus_node *template_owner; /* the string node behind chat_template */
    const char *chat_template;
} folder;

/* folder.c */
apus_status folder_open(folder *f, const char *path, apus_error *err);
void folder_close(folder *f);

/* tokenizer.c: everything about text that lies beside the weights, into the folder's nodes. */
apus_status folder_read_text(folder *f, apus_error *err);
/* tokenizer.json's shape out of GPT-2's pair of files (owner: caller). */
apus_node *gpt2_tokenizer(const apus_host *host, const char *vocabulary, const char *merges, apus_error *err);

/* write.c */
apus_status folder_write(const apus_host *host, const apus_node *params, const char *path, const apus_model_export *model, apus_error *err);

#endif
