/* Loaded by LD_PRELOAD, refuses every lock of a file under the folder NO_LOCKS_FOLDER with ENOLCK, as some network disks
   do. For the tests of training on such a disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(int descriptor) {
  char link[64], path[4096];
  const char *folder = getenv("NO_LOCKS_FOLDER");
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0 || folder == NULL) return 0;
  path[length] = 0;
  if (strncmp(path, folder, strlen(folder)) != 0) return 0;
  errno = ENOLCK;
  return 1;
}

int flock(int descriptor, int operation) {
  int (*next)(int, int) = dlsym(RTLD_NEXT, "flock");
  return refused(descriptor) ? -1 : next(descriptor, operation);
}

static int control(const char *name, int descriptor, int command, void *argument) {
  int (*next)(int, int, ...) = dlsym(RTLD_NEXT, name);
  int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
  return locks && refused(descriptor) ? -1 : next(descriptor, command, argument);
}

#define CONTROL(name)                                  \
  int name(int descriptor, int command, ...) {         \
    va_list arguments;                                 \
    va_start(arguments, command);                      \
    void *argument = va_arg(arguments, void *);        \
    va_end(arguments);                                 \
    return control(#name, descriptor, command, argument); \
  }
CONTROL(fcntl)
CONTROL(fcntl64)
