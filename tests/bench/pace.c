/* Paced HTTP load: requests at a given rate, whatever the server does.
 *
 * wrk sends the next request when the last was answered, so a server that stalls is asked less and looks
 * well. Here the moments at which requests are to be sent are drawn beforehand (a Poisson process of the
 * given rate, or with `even` one every 1 / RATE seconds), and the latency of a request counts from that
 * moment, also where it then had to wait for a free connection.
 *
 *     pace PORT CONNECTIONS RATE SECONDS WARM_UP_SECONDS SEED poisson|even < request
 *
 * Standard input is a whole HTTP/1.1 request for 127.0.0.1; each run of twelve # in it becomes a number
 * that no other has. One line of JSON on standard output tells what came of it; requests of the warm-up are
 * sent and not counted. What is not answered 10 seconds after the last was due is a fault, and so is every
 * answer that is not 2xx.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HOLE = 12, MAX_REQUEST = 4 << 20, MAX_HEAD = 16 << 10, READ_AT_ONCE = 256 << 10 };
#define GRACE_SECONDS 10.0

static void die(const char *what) {
  fprintf(stderr, "pace: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* xorshift64*: the same seed gives the same arrivals. */
static uint64_t state;
static double uniform(void) {
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return ((double)((state * 2685821657736338717ULL) >> 11) + 0.5) / 9007199254740992.0;
}

typedef struct {
  size_t asked;          /* which arrival it answers */
  int busy;
  char *request;
  size_t sent;
  char head[MAX_HEAD];
  size_t head_length;
  long long body_left;   /* -1: the head is not whole yet */
} Connection;

static char *template;
static size_t length, hole_count, *hole;
static uint64_t number;

static void read_template(void) {
  template = malloc(MAX_REQUEST);
  if (!template) die("no memory");
  for (ssize_t got; (got = read(0, template + length, MAX_REQUEST - length)) != 0; length += (size_t)got)
    if (got < 0) die("standard input");
  hole = malloc(sizeof *hole * (length / HOLE + 1));
  if (!hole || !length) die("no request on standard input");
  for (size_t i = 0; i + HOLE <= length;)
    if (!memcmp(template + i, "############", HOLE)) hole[hole_count++] = i, i += HOLE;
    else i++;
}

static void fill(Connection *c) {
  char digits[HOLE + 1];
  for (size_t i = 0; i < hole_count; i++) {
    snprintf(digits, sizeof digits, "%0*llu", HOLE, (unsigned long long)(++number % 1000000000000ULL));
    memcpy(c->request + hole[i], digits, HOLE);
  }
}

static int open_connection(int port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) die("fcntl");
  return fd;
}

static void push(Connection *c, struct pollfd *poll) {
  while (c->sent < length) {
    ssize_t put = write(poll->fd, c->request + c->sent, length - c->sent);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno == EAGAIN) break;
    if (put < 0) die("the server hung up");
    c->sent += (size_t)put;
  }
  poll->events = c->sent < length ? POLLIN | POLLOUT : POLLIN;
}

/* Returns 1 once the answer is whole, and its status. */
static int pull(Connection *c, int fd, int *status) {
  static char bytes[READ_AT_ONCE];
  for (;;) {
    char *at = c->body_left < 0 ? c->head + c->head_length : bytes;
    size_t room = c->body_left < 0 ? MAX_HEAD - 1 - c->head_length : sizeof bytes;
    ssize_t got = read(fd, at, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) die("the server hung up");
    if (c->body_left >= 0) {
      c->body_left -= got;
    } else {
      c->head_length += (size_t)got;
      c->head[c->head_length] = 0;
      char *end = strstr(c->head, "\r\n\r\n");
      if (!end) {
        if (c->head_length >= MAX_HEAD - 1) errno = 0, die("an answer's head is too long");
        continue;
      }
      char *size = strcasestr(c->head, "\r\ncontent-length:");
      if (!size || size > end) errno = 0, die("an answer without Content-Length");
      c->body_left = atoll(size + 17) - (long long)(c->head + c->head_length - (end + 4));
    }
    if (c->body_left <= 0) {
      *status = atoi(c->head + 9);
      return 1;
    }
  }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t count, double share) {
  if (!count) return 0;
  size_t rank = (size_t)ceil(share * (double)count);
  return sorted[(rank ? rank : 1) - 1] * 1e3;
}

int main(int argc, char **argv) {
  if (argc != 8)
    errno = 0, die("pace PORT CONNECTIONS RATE SECONDS WARM_UP_SECONDS SEED poisson|even < request");
  int port = atoi(argv[1]);
  size_t connections = (size_t)atoi(argv[2]);
  double rate = atof(argv[3]), seconds = atof(argv[4]), warm_up = atof(argv[5]);
  state = strtoull(argv[6], NULL, 10) * 2 + 1;
  /* Numbers of one seed do not meet those of another. */
  number = strtoull(argv[6], NULL, 10) % 1000 * 1000000000ULL;
  read_template();
  prctl(PR_SET_TIMERSLACK, 1UL);

  size_t room = (size_t)((seconds + warm_up) * rate * 2 + 1000), total = 0, first = 0;
  double *due = malloc(sizeof *due * room), *latency = malloc(sizeof *latency * room);
  double *lateness = malloc(sizeof *lateness * room);
  Connection *all = calloc(connections, sizeof *all);
  struct pollfd *polls = calloc(connections, sizeof *polls);
  size_t *idle = malloc(sizeof *idle * connections), idle_count = 0;
  if (!due || !latency || !lateness || !all || !polls || !idle) die("no memory");
  for (size_t i = 0; i < connections; i++) {
    polls[i] = (struct pollfd){.fd = open_connection(port), .events = POLLIN};
    if (!(all[i].request = malloc(length))) die("no memory");
    memcpy(all[i].request, template, length);
    idle[idle_count++] = i;
  }

  double start = now() + 0.05;
  int even = !strcmp(argv[7], "even");
  double at = even ? (uniform() - 1) / rate : 0;
  while ((at += (even ? 1 : -log(uniform())) / rate) < warm_up + seconds && total < room) {
    due[total++] = start + at;
    if (at < warm_up) first++;
  }
  size_t asked = 0, answered = 0, counted = 0, waited = 0, punctual = 0, bad = 0;
  double give_up = start + warm_up + seconds + GRACE_SECONDS, last = start, idle_since = start;
  while (answered < total) {
    double t = now();
    if (t > give_up) break;
    while (asked < total && due[asked] <= t && idle_count) {
      size_t i = idle[--idle_count];
      Connection *c = &all[i];
      /* A request that found no connection free waited for the server, not for this program. */
      if (due[asked] < idle_since) waited++;
      else lateness[punctual++] = t - due[asked];
      c->asked = asked++, c->busy = 1, c->sent = 0, c->head_length = 0, c->body_left = -1;
      fill(c);
      push(c, &polls[i]);
    }
    double wait = asked < total && idle_count ? due[asked] - now() : 0.1;
    if (wait < 0) wait = 0;
    struct timespec nap = {(time_t)wait, (long)((wait - floor(wait)) * 1e9)};
    if (ppoll(polls, connections, &nap, NULL) < 0 && errno != EINTR) die("ppoll");
    for (size_t i = 0; i < connections; i++) {
      Connection *c = &all[i];
      if (polls[i].revents & POLLOUT) push(c, &polls[i]);
      if (!(polls[i].revents & (POLLIN | POLLERR | POLLHUP))) continue;
      if (!c->busy) errno = 0, die("the server hung up on an idle connection");
      int status;
      if (!pull(c, polls[i].fd, &status)) continue;
      last = now();
      answered++;
      if (!idle_count) idle_since = last;
      c->busy = 0, polls[i].events = POLLIN, idle[idle_count++] = i;
      if (status < 200 || status > 299) bad++;
      if (c->asked >= first) latency[counted++] = last - due[c->asked];
    }
  }
  qsort(latency, counted, sizeof *latency, ascending);
  qsort(lateness, punctual, sizeof *lateness, ascending);
  double sum = 0;
  for (size_t i = 0; i < counted; i++) sum += latency[i];
  printf("{\"requests\":%zu,\"seconds\":%.3f,\"status\":%zu,\"timeout\":%zu,\"mean_ms\":%.3f,\"p50_ms\":%.3f,"
         "\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"p99_9_ms\":%.3f,\"max_ms\":%.3f,\"late_p99_ms\":%.3f,\"no_connection\":%zu}\n",
         counted, last - start - warm_up, bad, total - answered, counted ? sum / (double)counted * 1e3 : 0,
         percentile(latency, counted, .5), percentile(latency, counted, .9), percentile(latency, counted, .99),
         percentile(latency, counted, .999), percentile(latency, counted, 1),
         percentile(lateness, punctual, .99), waited);
  return 0;
}
