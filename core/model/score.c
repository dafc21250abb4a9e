/* core/model/score.c: see score.h. */
#include "model/score.h"

#include <stdlib.h>
#include <string.h>

#include "model/internal.h"

apus_tensor apus_model_logits(apus_graph *g, const apus_forward *f, const char *pick)
{
    const apus_graph_api *G = apus_graph_table();
    const int64_t n = APUS_DIM_SCORED;
    const apus_tensor rows[2] = {f->hidden, G->input(g, pick, APUS_I32, 1, &n)};
    const apus_tensor in[2] = {G->emit(g, "apus.gather/1", rows, 2, NULL, 0), f->head};
    apus_tensor logits = G->emit(g, "apus.linear/1", in, 2, NULL, 0);
    const double scale[2] = {f->outputs.logit_scale, 0.0};
    if (f->outputs.logit_scale != 1.0)
        logits = G->emit(g, "apus.affine/1", &logits, 1, scale, 2);
    if (f->outputs.logit_softcap > 0.0) {
        const double down[2] = {1.0 / f->outputs.logit_softcap, 0.0}, up[2] = {f->outputs.logit_softcap, 0.0};
        logits = G->emit(g, "apus.affine/1", &logits, 1, down, 2);
        logits = G->emit(g, "apus.tanh/1", &logits, 1, NULL, 0);
        logits = G->emit(g, "apus.affine/1", &logits, 1, up, 2);
    }
    return logits;
}

/* Logits of every position, once: whoever asks for the [n, vocab] matrix gets it. */
static apus_status score_logits(apus_model *m, apus_graph *g, const apus_forward *f, const apus_feed *feeds, size_t n_feeds, const int64_t *extents,
                                const int64_t *capacity, float *logits, apus_error *err)
{
    const apus_tensor out = apus_model_logits(g, f, "scored");
    apus_plan *p = NULL;
    apus_status st = apus_plan_new(g, m->device, &out, 1, capacity, APUS_RECOMPUTE_NONE, &p, err);
    if (st == APUS_OK)
        st = apus_model_bind(m, p, err);
    if (st == APUS_OK)
        st = apus_plan_run(p, extents, feeds, n_feeds, err);
    const apus_view v = st == APUS_OK ? apus_plan_output_view(p, 0) : (apus_view){0};
    const size_t row = (size_t)m->facts.vocab, size = st == APUS_OK ? apus_dtype_size(v.dtype) : 0;
    double *wide = malloc(row * sizeof *wide);
    if (wide == NULL)
        st = apus_fail(err, APUS_E_MEMORY, "out of memory");
    for (int64_t i = 0; st == APUS_OK && i < v.dims[0]; i++) {
        const char *src = (const char *)v.data + (size_t)i * row * size;
        if (v.dtype == APUS_F32) {
            st = apus_device_download(m->device, logits + (size_t)i * row, src, row * size, err);
            continue;
        }
        st = apus_device_download(m->device, wide, src, row * size, err);
        for (size_t k = 0; k < row; k++)
            logits[(size_t)i * row + k] = (float)wide[k];
    }
    free(wide);
    apus_plan_free(p);
    return st;
}

apus_status apus_model_score(apus_model *m, const int32_t *ids, size_t n, double *logprobs, float *logits, apus_error *err)
{
    const apus_graph_api *G = apus_graph_table();
    const apus_forward_options forward = {.mode = APUS_FORWARD_PLAIN, .tuner = 1};
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->facts.vocab)
            return apus_fail(err, APUS_E_INVALID, "id %d at place %zu is outside the vocabulary of %d", ids[i], i, m->facts.vocab);
    if (n < 1)
        return apus_fail(err, APUS_E_INVALID, "there is no token to score");
    if (m->facts.max_positions > 0 && n > (size_t)m->facts.max_positions)
        return apus_fail(err, APUS_E_INVALID, "%zu tokens are more than the model's %d positions", n, m->facts.max_positions);
    int32_t *positions = malloc(4 * n * sizeof *positions), *lengths = positions + n, *scored = positions + 2 * n, *targets = positions + 3 * n;
    apus_graph *g = apus_model_graph(m, &forward);
    apus_forward f;
    apus_status st = positions != NULL && g != NULL ? APUS_OK : apus_fail(err, APUS_E_MEMORY, "out of memory");
    if (st == APUS_OK)
        st = apus_model_forward(m, g, &f, err);
    if (st != APUS_OK) {
        apus_graph_free(g);
        free(positions);
        return st;
    }
    for (size_t i = 0; i < n; i++) {
        positions[i] = scored[i] = (int32_t)i;
        lengths[i] = (int32_t)n;
        targets[i] = i + 1 < n ? ids[i + 1] : 0;
    }
    const int32_t segments[4] = {0, (int32_t)n, -1, 0};
    const apus_feed feeds[] = {{"tokens", ids},        {"positions", positions}, {"lengths", lengths},
                               {"segments", segments}, {"scored", scored},       {"targets", targets}};
    const int64_t extents[APUS_N_DIM_SYMBOLS] = {(int64_t)n, 1, (int64_t)n - 1, 0, 0},
                  capacity[APUS_N_DIM_SYMBOLS] = {(int64_t)n, 1, (int64_t)n, 1, 0};
    if (logprobs != NULL && n > 1) {
        const int64_t dim = APUS_DIM_SCORED;
        const apus_tensor pick[2] = {f.hidden, G->input(g, "scored", APUS_I32, 1, &dim)};
        const apus_tensor in[3] = {G->emit(g, "apus.gather/1", pick, 2, NULL, 0), f.head, G->input(g, "targets", APUS_I32, 1, &dim)};
        const double attrs[2] = {f.outputs.logit_scale, f.outputs.logit_softcap};
        const apus_tensor out = G->emit(g, "apus.token_logprob/1", in, 3, attrs, 2);
        apus_plan *p = NULL;
        st = apus_plan_new(g, m->device, &out, 1, capacity, APUS_RECOMPUTE_NONE, &p, err);
        if (st == APUS_OK)
            st = apus_model_bind(m, p, err);
        if (st == APUS_OK)
            st = apus_plan_run(p, extents, feeds, 6, err);
        if (st == APUS_OK)
            st = apus_plan_output(p, 0, logprobs, (int64_t)n - 1, err);
        apus_plan_free(p);
    }
    if (st == APUS_OK && logits != NULL) {
        int64_t all[APUS_N_DIM_SYMBOLS];
        memcpy(all, extents, sizeof all);
        all[-1 - APUS_DIM_SCORED] = (int64_t)n;
        st = score_logits(m, g, &f, feeds, 5, all, capacity, logits, err);
    }
    apus_graph_free(g);
    free(positions);
    return st;
}
