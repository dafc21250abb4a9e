/*
 * core/template/filters: what its two files share.
 */
#ifndef APUS_CORE_TEMPLATE_FILTERS_H
#define APUS_CORE_TEMPLATE_FILTERS_H

#include "value.h"

const tfilter *apus_tpl_sequence_filter(const char *name, size_t length); /* NULL: not one of them */

#endif
