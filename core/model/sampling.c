/* core/model/sampling.c: see sampling.h. Keys: transformers' GenerationConfig. */
#include "model/sampling.h"

#include <stdio.h>
#include <string.h>

#include "value/node.h"

#define NODE apus_nodes()

static const char *const numbers[] = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"};
enum { N_NUMBERS = sizeof numbers / sizeof numbers[0] };

static const apus_node *advice(const apus_model *m)
{
    return apus_model_get_card(m)->generation_config;
}

static int is_number(const apus_node *v)
{
    return NODE->kind(v) == APUS_NODE_INT || NODE->kind(v) == APUS_NODE_FLOAT;
}

apus_node *apus_model_sampler(const apus_model *m)
{
    const apus_node *says = advice(m);
    const int samples = NODE->as_bool(NODE->get(says, "do_sample"), 0);
    apus_node *s = NODE->make_map();
    if (samples) {
        (void)NODE->set(s, "temperature", NODE->make_float(1.0));
        (void)NODE->set(s, "top_k", NODE->make_int(50));
    }
    for (int i = 0; i < N_NUMBERS; i++) {
        const apus_node *v = NODE->get(says, numbers[i]);
        if (is_number(v) && (samples || strcmp(numbers[i], "repetition_penalty") == 0))
            (void)NODE->set(s, numbers[i], NODE->copy(v));
    }
    return s;
}

/* Token ids are followed, and what says nothing of sampling is nothing to follow. */
static int concerns_sampling(const char *key)
{
    const size_t n = strlen(key);
    return strstr(key, "token_id") == NULL && key[0] != '_' && strcmp(key, "transformers_version") != 0 && strncmp(key, "output_", 7) != 0 &&
           strcmp(key, "use_cache") != 0 && !(n > 5 && strcmp(key + n - 5, "_impl") == 0);
}

int apus_model_sampling_ignored(const apus_model *m, char *line, size_t capacity)
{
    const apus_node *says = advice(m);
    size_t used = 0;
    for (size_t i = 0; i < NODE->length(says); i++) {
        const char *key = NODE->key_at(says, i);
        const apus_node *v = NODE->at(says, i);
        if (!concerns_sampling(key) || NODE->kind(v) == APUS_NODE_NULL || used + 64 > capacity)
            continue;
        used += (size_t)snprintf(line + used, capacity - used, used == 0 ? "generation_config.json also says %.40s" : ", %.40s", key);
        if (is_number(v) && used + 32 < capacity)
            used += (size_t)snprintf(line + used, capacity - used, " %g", NODE->as_float(v, 0.0));
        else if (NODE->kind(v) == APUS_NODE_BOOL && used + 32 < capacity)
            used += (size_t)snprintf(line + used, capacity - used, " %s", NODE->as_bool(v, 0) ? "true" : "false");
    }
    if (used > 0 && used < capacity)
        (void)snprintf(line + used, capacity - used, ": ignored");
    return used > 0;
}
