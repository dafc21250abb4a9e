/*
 * core/template/casing: see casing.c.
 */
#ifndef APUS_CORE_TEMPLATE_CASING_H
#define APUS_CORE_TEMPLATE_CASING_H

#include <stdbool.h>
#include <stdint.h>

const char *apus_tpl_special_case(uint32_t c, bool title); /* NULL: one character, see utf8proc */

#endif
