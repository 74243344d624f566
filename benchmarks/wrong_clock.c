// For LD_PRELOAD: the wall clock is wrong by as many seconds as the file says that WRONG_CLOCK names, other clocks are
// right; what waits for a moment by the wall clock waits for the same moment. Built and used by chaos.py.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define EPOCH_S 1000000000  // moments before it are of a clock that began with the machine

static _Atomic long wrong_s, looked_ns;

static long wrong(void) {
  struct timespec now;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  long now_ns = now.tv_sec * 1000000000L + now.tv_nsec;
  if (now_ns - looked_ns > 100000000L) {
    const char *path = getenv("WRONG_CLOCK");
    char text[16] = {0};
    long file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    looked_ns = now_ns;
    if (file >= 0) {
      if (syscall(SYS_read, file, text, sizeof text - 1) > 0) wrong_s = strtol(text, NULL, 10);
      syscall(SYS_close, file);
    }
  }
  return wrong_s;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  int failed = syscall(SYS_clock_gettime, clock, time);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += wrong();
  return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  int failed = syscall(SYS_gettimeofday, time, zone);
  if (!failed) time->tv_sec += wrong();
  return failed;
}

time_t time(time_t *kept) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (kept) *kept = now.tv_sec;
  return now.tv_sec;
}

static struct timespec right(const struct timespec *until) {
  struct timespec moment = *until;
  if (moment.tv_sec > EPOCH_S) moment.tv_sec -= wrong();
  return moment;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  struct timespec moment = right(until);
  return real(cond, mutex, &moment);
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict until) {
  static int (*real)(sem_t *, const struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "sem_timedwait");
  struct timespec moment = right(until);
  return real(sem, &moment);
}
