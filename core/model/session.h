/* core/model/session: the table behind "apus.session/1" (apus/session.h). */
#ifndef APUS_CORE_SESSION_H
#define APUS_CORE_SESSION_H

#include <apus/session.h>

const apus_session_api *apus_session_table(void);

#endif
