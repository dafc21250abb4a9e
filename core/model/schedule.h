/* core/model/schedule: learning rate by step. */
#ifndef APUS_CORE_SCHEDULE_H
#define APUS_CORE_SCHEDULE_H

#include <apus/base.h>

typedef struct apus_schedule {
    int shape;            /* 0 constant, 1 linear, 2 cosine */
    int64_t warmup_steps; /* from 0 up to the peak, linearly */
    int64_t total_steps;
} apus_schedule;

/* {type: constant|linear|cosine, warmup_steps: N, warmup_ratio: share of all steps}; a name alone; null: constant. */
const apus_param *apus_schedule_params(uint32_t *n);
apus_status apus_schedule_open(const apus_node *spec, int64_t total_steps, apus_schedule *s, apus_error *err);
/* Factor of the peak rate that step (0-based) uses: transformers' get_*_schedule (linear and cosine end at 0). */
double apus_schedule_factor(const apus_schedule *s, int64_t step);

#endif
