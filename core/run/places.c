/* core/run/places.c: which places of a pipeline know a key: the hint of a key that was written in another. */
#include <stdio.h>
#include <string.h>

#include "config/config.h"
#include "data/dataset.h"
#include "model/schedule.h"
#include "module/module.h"
#include "run/pipeline.h"

/* The list of places, as far as it fits. */
typedef struct places {
    char *text;
    size_t capacity, used;
} places;

static void say(places *to, const char *before, const char *name)
{
    const int n = snprintf(to->text + to->used, to->capacity - to->used, "%s%s", before, name);
    if (n > 0 && (size_t)n < to->capacity - to->used)
        to->used += (size_t)n;
    else
        to->text[to->used] = '\0';
}

static int knows(const apus_param *params, uint32_t n, const char *key)
{
    for (uint32_t i = 0; i < n; i++) {
        apus_param p;
        apus_take(&p, sizeof p, (const char *)params + (size_t)i * params[0].size);
        if (strcmp(p.name, key) == 0)
            return 1;
    }
    return 0;
}

static void say_table(places *to, const apus_param *params, uint32_t n, const char *key, const char *name)
{
    if (knows(params, n, key))
        say(to, to->used > 0 ? ", " : "", name);
}

/* "KIND (NAME, NAME)" */
static void say_kind(places *to, const char *kind, const char *key)
{
    int any = 0;
    for (size_t i = 0; i < apus_component_count(kind); i++) {
        const apus_component *c = apus_component_at(kind, i);
        if (!knows(c->params, c->n_params, key))
            continue;
        if (!any)
            say(to, to->used > 0 ? ", " : "", kind);
        say(to, any ? ", " : " (", c->name);
        any = 1;
    }
    if (any)
        say(to, ")", "");
}

void apus_pipeline_places(const char *key, char *text, size_t capacity)
{
    static const char *const kinds[] = {"backend", "stage", "dataset", "tuner", "loss", "optimizer", "sampler", "tracker"};
    places to = {text, capacity, 0};
    uint32_t n;
    text[0] = '\0';
    const apus_param *params = apus_pipeline_params(&n);
    say_table(&to, params, n, key, "the file's top level");
    params = apus_dataset_params(&n);
    say_table(&to, params, n, key, "every dataset");
    params = apus_schedule_params(&n);
    say_table(&to, params, n, key, "schedule");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        say_kind(&to, kinds[i], key);
}
