#include <stddef.h>
#include <stdint.h>

// What a thread's next filter does, besides what libseccomp does. See memo.c.
void memo_record(void);
void memo_know(const void *log, size_t log_size, const void *program, size_t program_size);
void memo_forget(void);

// What the thread's last filter was: its calls and, after memo_record, its program.
const void *memo_log(size_t *size);
const void *memo_program(size_t *size);
int memo_hit(void);
