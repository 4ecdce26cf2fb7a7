/* Preloaded: each file-system call on a path or descriptor below a directory takes longer, as it does over a network.
 *
 * DELAY_BELOW: the directory, without symbolic links. DELAY_NANOSECONDS: added before each call, in the thread that
 * makes it. What the C library calls inside itself is counted as the system calls that it makes: opendir(3) opens and
 * asks for the size, readdir(3) asks the kernel once for each 32 KiB of entries and once more for the end.
 * For 64-bit Linux with glibc 2.33 or newer. No header that declares the functions below may be included.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#define AT_FDCWD (-100)
#define DESCRIPTORS 65536
#define BUFFER 32768 /* bytes that readdir(3) asks for at a time */

typedef unsigned mode;
typedef long size;

struct entry { /* struct dirent */
    unsigned long inode;
    long offset;
    unsigned short length;
};

static const char *below;
static size_t below_length;
static long nanoseconds;
static long (*readlink_)(const char *, char *, size_t);
static int (*dirfd_)(void *);
static unsigned listed[DESCRIPTORS]; /* bytes of entries that were read since the kernel was asked */

__attribute__((constructor)) static void prepare(void)
{
    const char *text = getenv("DELAY_NANOSECONDS");
    below = getenv("DELAY_BELOW");
    below_length = below ? strlen(below) : 0;
    nanoseconds = text ? atol(text) : 0;
    *(void **)&readlink_ = dlsym(RTLD_NEXT, "readlink");
    *(void **)&dirfd_ = dlsym(RTLD_NEXT, "dirfd");
}

static int inside(const char *path, size_t length)
{
    return length >= below_length && memcmp(path, below, below_length) == 0
        && (length == below_length || path[below_length] == '/');
}

static int inside_link(const char *link)
{
    char found[4096];
    long length = readlink_ ? readlink_(link, found, sizeof found) : -1;
    return length > 0 && inside(found, (size_t)length);
}

/* A descriptor. */
static int fd_(int fd)
{
    char link[40] = "/proc/self/fd/", digits[12];
    int count = 0, end = 14;
    if (!below_length || fd < 0)
        return 0;
    do
        digits[count++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    while (count > 0)
        link[end++] = digits[--count];
    return inside_link(link);
}

/* A path relative to a descriptor. */
static int at_(int fd, const char *path)
{
    if (!below_length)
        return 0;
    if (path && path[0] == '/')
        return inside(path, strlen(path));
    return fd == AT_FDCWD ? inside_link("/proc/self/cwd") : fd_(fd);
}

static int path_(const char *path)
{
    return at_(AT_FDCWD, path);
}

static void wait_(int times)
{
    struct timespec rest;
    rest.tv_sec = nanoseconds * times / 1000000000;
    rest.tv_nsec = nanoseconds * times % 1000000000;
    while (nanosleep(&rest, &rest) != 0)
        ;
}

#define NEXT(type, name, parameters)                                                                                  \
    static type(*next) parameters;                                                                                    \
    if (!next)                                                                                                        \
    *(void **)&next = dlsym(RTLD_NEXT, #name)

#define CALL(type, name, parameters, arguments, where)                                                                \
    type name parameters                                                                                              \
    {                                                                                                                 \
        NEXT(type, name, parameters);                                                                                 \
        if (where)                                                                                                    \
            wait_(1);                                                                                                 \
        return next arguments;                                                                                        \
    }

/* Variable arguments are passed like others on these machines. */
#define OPEN(name)   CALL(int, name, (const char *p, int flags, mode m), (p, flags, m), path_(p))
#define OPENAT(name) CALL(int, name, (int d, const char *p, int flags, mode m), (d, p, flags, m), at_(d, p))
#define STAT(name)   CALL(int, name, (const char *p, void *found), (p, found), path_(p))
#define FSTAT(name)  CALL(int, name, (int fd, void *found), (fd, found), fd_(fd))
#define STATAT(name) CALL(int, name, (int d, const char *p, void *found, int flags), (d, p, found, flags), at_(d, p))
#define PREAD(name)  CALL(size, name, (int fd, void *b, size_t n, long at), (fd, b, n, at), fd_(fd))
#define VECTOR(name) CALL(size, name, (int fd, const void *v, int n), (fd, v, n), fd_(fd))
#define LONGFD(name) CALL(int, name, (int fd, long n), (fd, n), fd_(fd))
#define SEEK(name)   CALL(long, name, (int fd, long at, int whence), (fd, at, whence), whence > 2 && fd_(fd))

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
CALL(int, __open_2, (const char *p, int flags), (p, flags), path_(p))
CALL(int, __open64_2, (const char *p, int flags), (p, flags), path_(p))
CALL(int, __openat_2, (int d, const char *p, int flags), (d, p, flags), at_(d, p))
CALL(int, __openat64_2, (int d, const char *p, int flags), (d, p, flags), at_(d, p))
CALL(int, creat, (const char *p, mode m), (p, m), path_(p))
CALL(int, mkstemp, (char *p), (p), path_(p))
CALL(int, mkstemp64, (char *p), (p), path_(p))
CALL(int, close, (int fd), (fd), fd_(fd))

STAT(stat) STAT(stat64) STAT(lstat) STAT(lstat64) FSTAT(fstat) FSTAT(fstat64) STATAT(fstatat) STATAT(fstatat64)
CALL(int, statx, (int d, const char *p, int flags, unsigned mask, void *found), (d, p, flags, mask, found), at_(d, p))
STAT(statfs) STAT(statfs64) FSTAT(fstatfs) FSTAT(fstatfs64) STAT(statvfs64) FSTAT(fstatvfs64)
CALL(int, access, (const char *p, int how), (p, how), path_(p))
CALL(int, faccessat, (int d, const char *p, int how, int flags), (d, p, how, flags), at_(d, p))
CALL(size, readlink, (const char *p, char *b, size_t n), (p, b, n), path_(p))
CALL(size, readlinkat, (int d, const char *p, char *b, size_t n), (d, p, b, n), at_(d, p))

CALL(size, read, (int fd, void *b, size_t n), (fd, b, n), fd_(fd))
CALL(size, __read_chk, (int fd, void *b, size_t n, size_t room), (fd, b, n, room), fd_(fd))
CALL(size, write, (int fd, const void *b, size_t n), (fd, b, n), fd_(fd))
PREAD(pread) PREAD(pread64) PREAD(pwrite) PREAD(pwrite64) VECTOR(readv) VECTOR(writev)
CALL(size, copy_file_range, (int i, long *from, int o, long *to, size_t n, unsigned flags),
     (i, from, o, to, n, flags), fd_(i) || fd_(o))
CALL(size, sendfile, (int o, int i, long *at, size_t n), (o, i, at, n), fd_(i) || fd_(o))
CALL(size, sendfile64, (int o, int i, long *at, size_t n), (o, i, at, n), fd_(i) || fd_(o))
SEEK(lseek) SEEK(lseek64) /* SEEK_DATA and SEEK_HOLE ask the file system */
LONGFD(ftruncate) LONGFD(ftruncate64)
CALL(int, fallocate, (int fd, int how, long at, long n), (fd, how, at, n), fd_(fd))
CALL(int, fallocate64, (int fd, int how, long at, long n), (fd, how, at, n), fd_(fd))
CALL(int, posix_fallocate64, (int fd, long at, long n), (fd, at, n), fd_(fd))
CALL(int, fsync, (int fd), (fd), fd_(fd))
CALL(int, fdatasync, (int fd), (fd), fd_(fd))
CALL(int, syncfs, (int fd), (fd), fd_(fd))

CALL(int, rename, (const char *p, const char *q), (p, q), path_(p) || path_(q))
CALL(int, renameat, (int d, const char *p, int e, const char *q), (d, p, e, q), at_(d, p) || at_(e, q))
CALL(int, renameat2, (int d, const char *p, int e, const char *q, unsigned f), (d, p, e, q, f), at_(d, p) || at_(e, q))
CALL(int, link, (const char *p, const char *q), (p, q), path_(p) || path_(q))
CALL(int, linkat, (int d, const char *p, int e, const char *q, int f), (d, p, e, q, f), at_(d, p) || at_(e, q))
CALL(int, symlink, (const char *to, const char *p), (to, p), path_(p))
CALL(int, symlinkat, (const char *to, int d, const char *p), (to, d, p), at_(d, p))
CALL(int, unlink, (const char *p), (p), path_(p))
CALL(int, unlinkat, (int d, const char *p, int flags), (d, p, flags), at_(d, p))
CALL(int, rmdir, (const char *p), (p), path_(p))
CALL(int, mkdir, (const char *p, mode m), (p, m), path_(p))
CALL(int, mkdirat, (int d, const char *p, mode m), (d, p, m), at_(d, p))
CALL(int, mkfifo, (const char *p, mode m), (p, m), path_(p))
CALL(int, mkfifoat, (int d, const char *p, mode m), (d, p, m), at_(d, p))
CALL(int, mknod, (const char *p, mode m, unsigned long device), (p, m, device), path_(p))
CALL(int, mknodat, (int d, const char *p, mode m, unsigned long device), (d, p, m, device), at_(d, p))

CALL(int, chmod, (const char *p, mode m), (p, m), path_(p))
CALL(int, lchmod, (const char *p, mode m), (p, m), path_(p))
CALL(int, fchmod, (int fd, mode m), (fd, m), fd_(fd))
CALL(int, fchmodat, (int d, const char *p, mode m, int flags), (d, p, m, flags), at_(d, p))
CALL(int, chown, (const char *p, unsigned u, unsigned g), (p, u, g), path_(p))
CALL(int, lchown, (const char *p, unsigned u, unsigned g), (p, u, g), path_(p))
CALL(int, fchown, (int fd, unsigned u, unsigned g), (fd, u, g), fd_(fd))
CALL(int, fchownat, (int d, const char *p, unsigned u, unsigned g, int flags), (d, p, u, g, flags), at_(d, p))
CALL(int, utimensat, (int d, const char *p, const void *times, int flags), (d, p, times, flags), at_(d, p))
CALL(int, futimens, (int fd, const void *times), (fd, times), fd_(fd))
CALL(int, utimes, (const char *p, const void *times), (p, times), path_(p))
CALL(int, lutimes, (const char *p, const void *times), (p, times), path_(p))

#define GET(name, type, where)                                                                                        \
    CALL(size, name, (type p, const char *key, void *b, size_t n), (p, key, b, n), where(p))
#define SET(name, type, where)                                                                                        \
    CALL(int, name, (type p, const char *key, const void *b, size_t n, int flags), (p, key, b, n, flags), where(p))
#define LIST(name, type, where)   CALL(size, name, (type p, char *b, size_t n), (p, b, n), where(p))
#define REMOVE(name, type, where) CALL(int, name, (type p, const char *key), (p, key), where(p))

GET(getxattr, const char *, path_) GET(lgetxattr, const char *, path_) GET(fgetxattr, int, fd_)
SET(setxattr, const char *, path_) SET(lsetxattr, const char *, path_) SET(fsetxattr, int, fd_)
LIST(listxattr, const char *, path_) LIST(llistxattr, const char *, path_) LIST(flistxattr, int, fd_)
REMOVE(removexattr, const char *, path_) REMOVE(lremovexattr, const char *, path_) REMOVE(fremovexattr, int, fd_)

/* Calls of which the first argument is a descriptor and the second a path. */
long syscall(long number, long a, long b, long c, long d, long e, long f)
{
    NEXT(long, syscall, (long, long, long, long, long, long, long));
    if ((number == SYS_openat2 || number == SYS_statx || number == SYS_renameat2) && at_((int)a, (const char *)b))
        wait_(1);
    return next(number, a, b, c, d, e, f);
}

static void opened(void *directory)
{
    int fd = directory ? dirfd_(directory) : -1;
    if (fd >= 0 && fd < DESCRIPTORS)
        listed[fd] = BUFFER; /* the first entry asks */
}

void *opendir(const char *path)
{
    NEXT(void *, opendir, (const char *));
    if (path_(path))
        wait_(2);
    void *directory = next(path);
    opened(directory);
    return directory;
}

void *fdopendir(int fd)
{
    NEXT(void *, fdopendir, (int));
    if (fd_(fd))
        wait_(1);
    void *directory = next(fd);
    opened(directory);
    return directory;
}

static void count(void *directory, const struct entry *found)
{
    int fd = dirfd_(directory);
    if (fd < 0 || fd >= DESCRIPTORS)
        return;
    unsigned length = found ? found->length : 0;
    if (!found || listed[fd] + length > BUFFER) {
        if (fd_(fd))
            wait_(1);
        listed[fd] = 0;
    }
    listed[fd] += length;
}

void *readdir(void *directory)
{
    NEXT(void *, readdir, (void *));
    void *found = next(directory);
    count(directory, found);
    return found;
}

void *readdir64(void *directory)
{
    NEXT(void *, readdir64, (void *));
    void *found = next(directory);
    count(directory, found);
    return found;
}

void rewinddir(void *directory)
{
    NEXT(void, rewinddir, (void *));
    next(directory);
    opened(directory);
}

int closedir(void *directory)
{
    NEXT(int, closedir, (void *));
    if (fd_(dirfd_(directory)))
        wait_(1);
    return next(directory);
}
