/*
 * core/module/kinds: for each kind of component, the size of the vtable that this host knows and the functions that
 * must be there. Checked once at load, so that nothing later asks.
 */
#include "module/internal.h"

#include <apus/data.h>
#include <apus/kernel.h>
#include <apus/model.h>
#include <apus/session.h>
#include <apus/tokenizer.h>
#include <apus/train.h>

#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof(a)[0])
#define NEED(type, field)                                                                                                                            \
    {                                                                                                                                                \
#field, offsetof(type, field)                                                                                                                \
    }
#define KIND(name, type, r)                                                                                                                          \
    {                                                                                                                                                \
        name, sizeof(type), r, COUNT(r), NULL                                                                                                        \
    }

static const apus_required backend[] = {
    NEED(apus_backend_ops, open),   NEED(apus_backend_ops, close),       NEED(apus_backend_ops, real),   NEED(apus_backend_ops, alloc),
    NEED(apus_backend_ops, free),   NEED(apus_backend_ops, host_memory), NEED(apus_backend_ops, upload), NEED(apus_backend_ops, download),
    NEED(apus_backend_ops, finish), NEED(apus_backend_ops, describe),
};
static const apus_required kernels[] = {NEED(apus_kernels_ops, backend), NEED(apus_kernels_ops, kernels)};
static const apus_required kernel[] = {NEED(apus_kernel, op), NEED(apus_kernel, run)};
static const apus_required ops[] = {NEED(apus_ops_ops, ops)};
static const apus_required op[] = {NEED(apus_op, name), NEED(apus_op, doc), NEED(apus_op, shapes)};
static const apus_required arch[] = {
    NEED(apus_arch_ops, claims), NEED(apus_arch_ops, open), NEED(apus_arch_ops, close), NEED(apus_arch_ops, facts), NEED(apus_arch_ops, build),
};
static const apus_required format[] = {
    NEED(apus_format_ops, claims), NEED(apus_format_ops, open),   NEED(apus_format_ops, close), NEED(apus_format_ops, card),
    NEED(apus_format_ops, count),  NEED(apus_format_ops, tensor), NEED(apus_format_ops, find),  NEED(apus_format_ops, unused),
};
static const apus_required tokenizer[] = {
    NEED(apus_tokenizer_ops, claims), NEED(apus_tokenizer_ops, open),   NEED(apus_tokenizer_ops, close),
    NEED(apus_tokenizer_ops, encode), NEED(apus_tokenizer_ops, decode), NEED(apus_tokenizer_ops, vocab_size),
    NEED(apus_tokenizer_ops, token),  NEED(apus_tokenizer_ops, id),     NEED(apus_tokenizer_ops, is_special),
};
static const apus_required dataset[] = {
    NEED(apus_dataset_ops, claims),
    NEED(apus_dataset_ops, open),
    NEED(apus_dataset_ops, close),
    NEED(apus_dataset_ops, example),
};
static const apus_required loss[] = {
    NEED(apus_loss_ops, open),
    NEED(apus_loss_ops, close),
    NEED(apus_loss_ops, needs),
    NEED(apus_loss_ops, build),
};
static const apus_required tuner[] = {
    NEED(apus_tuner_ops, open),   NEED(apus_tuner_ops, close),      NEED(apus_tuner_ops, bind),
    NEED(apus_tuner_ops, trains), NEED(apus_tuner_ops, parameters), NEED(apus_tuner_ops, parameter),
};
static const apus_required optimizer[] = {
    NEED(apus_optimizer_ops, open),       NEED(apus_optimizer_ops, close),         NEED(apus_optimizer_ops, flags), NEED(apus_optimizer_ops, states),
    NEED(apus_optimizer_ops, state_name), NEED(apus_optimizer_ops, learning_rate), NEED(apus_optimizer_ops, build),
};
static const apus_required sampler[] = {
    NEED(apus_sampler_ops, open),
    NEED(apus_sampler_ops, close),
    NEED(apus_sampler_ops, sample),
};
static const apus_required stage[] = {NEED(apus_stage_ops, run)};
static const apus_required tracker[] = {
    NEED(apus_tracker_ops, open),
    NEED(apus_tracker_ops, event),
    NEED(apus_tracker_ops, close),
};

static const apus_kind_array kernel_array = {
    .field = "kernels",
    .pointer = offsetof(apus_kernels_ops, kernels),
    .count = offsetof(apus_kernels_ops, n_kernels),
    .name = offsetof(apus_kernel, op),
    .size = sizeof(apus_kernel),
    .required = kernel,
    .n_required = COUNT(kernel),
};
static const apus_kind_array op_array = {
    .field = "ops",
    .pointer = offsetof(apus_ops_ops, ops),
    .count = offsetof(apus_ops_ops, n_ops),
    .name = offsetof(apus_op, name),
    .size = sizeof(apus_op),
    .required = op,
    .n_required = COUNT(op),
};

static const apus_kind kinds[] = {
    KIND("backend", apus_backend_ops, backend),
    {"kernels", sizeof(apus_kernels_ops), kernels, COUNT(kernels), &kernel_array},
    {"op", sizeof(apus_ops_ops), ops, COUNT(ops), &op_array},
    KIND("arch", apus_arch_ops, arch),
    KIND("format", apus_format_ops, format),
    KIND("tokenizer", apus_tokenizer_ops, tokenizer),
    KIND("dataset", apus_dataset_ops, dataset),
    KIND("loss", apus_loss_ops, loss),
    KIND("tuner", apus_tuner_ops, tuner),
    KIND("optimizer", apus_optimizer_ops, optimizer),
    KIND("sampler", apus_sampler_ops, sampler),
    KIND("stage", apus_stage_ops, stage),
    KIND("tracker", apus_tracker_ops, tracker),
};

const apus_kind *apus_kind_at(size_t i)
{
    return i < COUNT(kinds) ? &kinds[i] : NULL;
}

const apus_kind *apus_kind_find(const char *name)
{
    for (size_t i = 0; i < COUNT(kinds); i++) {
        if (strcmp(kinds[i].name, name) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}
