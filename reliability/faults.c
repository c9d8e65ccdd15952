/* Makes system calls fail below a folder, as a dying or full disk does; for reliability/faults.py.

   FAULT_BELOW   the folder
   FAULT_READ    the first read, counted from 1 in each process, from which on all fail
   FAULT_WRITE   the same for writes, truncations, syncs and new names
   FAULT_ERRNO   what they fail with
   FAULT_CLOCK   if set, the clock jumps ten years back and forth with each call
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int is_below(const char *path) {
    const char *folder = getenv("FAULT_BELOW");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_due(const char *limit, atomic_long *count) {
    const char *first = getenv(limit);
    if (!first || atomic_fetch_add(count, 1) + 1 < atol(first)) return 0;
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

static atomic_long reads, writes;

static int fails(int fd, const char *limit, atomic_long *count) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path) && is_due(limit, count);
}

#define WRAP(type, name, limit, count, parameters, ...)                        \
    type name parameters {                                                     \
        static type (*real) parameters;                                        \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);         \
        return fails(fd, limit, count) ? -1 : real(__VA_ARGS__);               \
    }
#define READ(name, parameters, ...) WRAP(ssize_t, name, "FAULT_READ", &reads, parameters, __VA_ARGS__)
#define WRITE(type, name, parameters, ...) WRAP(type, name, "FAULT_WRITE", &writes, parameters, __VA_ARGS__)

READ(read, (int fd, void *data, size_t size), fd, data, size)
READ(pread, (int fd, void *data, size_t size, off_t at), fd, data, size, at)
READ(pread64, (int fd, void *data, size_t size, off64_t at), fd, data, size, at)
READ(readv, (int fd, const struct iovec *data, int size), fd, data, size)
READ(preadv, (int fd, const struct iovec *data, int size, off_t at), fd, data, size, at)
READ(preadv64, (int fd, const struct iovec *data, int size, off64_t at), fd, data, size, at)
WRITE(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
WRITE(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
WRITE(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
WRITE(int, fsync, (int fd), fd)
WRITE(int, ftruncate, (int fd, off_t size), fd, size)
WRITE(int, ftruncate64, (int fd, off64_t size), fd, size)

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return is_below(to) && is_due("FAULT_WRITE", &writes) ? -1 : real(from, to);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    static atomic_long jumps;
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (code == 0 && clock == CLOCK_REALTIME && getenv("FAULT_CLOCK"))
        now->tv_sec += atomic_fetch_add(&jumps, 1) % 2 ? 315360000 : -315360000;
    return code;
}
