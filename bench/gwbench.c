/* gwbench: a mock OpenAI engine and a load generator.
 *
 * Both are single-threaded epoll loops, several times cheaper per request than anything that could
 * stand between them, so that the proxy is the bottleneck and not the tool.
 *
 *   gwbench engine PORT [CHUNKS=32] [GAP_US=0] [FIRST_US=0]
 *     Answers chat completions on 127.0.0.1:PORT. A body with "stream": true gets CHUNKS content
 *     events, GAP_US apart, the first after FIRST_US; each event is an HTTP chunk and a write of
 *     its own. Also /v1/models, /metrics (vLLM's names) and 200 for any other GET.
 *
 *   gwbench load HOST PORT BODYFILE CONNS SECONDS [RATE=0] [PATH] [HEADER...]
 *     Posts BODYFILE over CONNS kept connections. RATE 0: closed loop, each connection asks again
 *     as soon as it has its answer; else RATE requests per second with exponential gaps, latency
 *     counted from the scheduled start. Requests under way at the end get 30 s more. Prints one
 *     JSON object. Environment: WANT_EVENTS, the fewest events of a whole stream (less is `short`);
 *     GWBENCH_KEY, the bearer token (default sk-test).
 *
 * Build: cc -O2 -o gwbench gwbench.c -lm
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_READY = 512,            /* epoll events taken at once */
    FIRST_ROOM_BYTES = 65536,   /* of the engine's input buffer, which doubles */
    LOAD_ROOM_BYTES = 262144,   /* of the load's input buffers */
    MAX_BODY_BYTES = 4 << 20,
    MAX_HEAD_BYTES = 8192,
    MAX_GAPS = 4000000,         /* gaps between events kept for the percentiles */
    GRACE_S = 30,               /* for requests under way when the time is over */
};

static int epoll_fd;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *must(void *memory)
{
    if (!memory) {
        perror("memory");
        exit(1);
    }
    return memory;
}

static void set_up_socket(int fd)
{
    int one = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void watch(int operation, int fd, unsigned events, void *owner)
{
    struct epoll_event event = {.events = events, .data = {.ptr = owner}};
    epoll_ctl(epoll_fd, operation, fd, &event);
}

/* ------------------------------------------------------------------ engine */

struct conn {
    int fd;
    char *in;
    size_t in_size, in_room;
    char *out;
    size_t out_size, out_room, out_sent;
    int streaming;
    int left;               /* events still to come, role event and end mark included */
    double due_s;           /* when the next one goes out */
    int slot;               /* in `active`, -1: not there */
    long id;
    int wants_usage;
    int prompt_tokens;
};

static struct conn **active;
static int n_active, active_room;
static int n_chunks = 32;
static double gap_s, first_s;
static long n_requests;

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ndate: Thu, 20 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
static const char EVENT_START[] =
    "data: {\"id\":\"chatcmpl-%ld\",\"object\":\"chat.completion.chunk\",\"created\":1763650000,"
    "\"model\":\"mock\",\"choices\":[";

static void activate(struct conn *c)
{
    if (n_active == active_room) {
        active_room = active_room ? active_room * 2 : 256;
        active = must(realloc(active, active_room * sizeof *active));
    }
    c->slot = n_active;
    active[n_active++] = c;
}

static void deactivate(struct conn *c)
{
    if (c->slot < 0)
        return;
    active[c->slot] = active[--n_active];
    active[c->slot]->slot = c->slot;
    c->slot = -1;
}

static void close_conn(struct conn *c)
{
    deactivate(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* 0: all is sent; 1: the socket is full, epoll will tell; -1: the peer has gone. */
static int flush(struct conn *c)
{
    while (c->out_sent < c->out_size) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                return -1;
            watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
            return 1;
        }
        c->out_sent += n;
    }
    c->out_sent = c->out_size = 0;
    return 0;
}

static void put(struct conn *c, const char *data, size_t size)
{
    if (c->out_size + size > c->out_room) {
        c->out_room = (c->out_size + size) * 2;
        c->out = must(realloc(c->out, c->out_room));
    }
    memcpy(c->out + c->out_size, data, size);
    c->out_size += size;
}

/* The next event of a stream, as one HTTP chunk and one write. */
static int send_event(struct conn *c)
{
    char event[1024], chunk[1200];
    int n = 0, is_last = c->left == 1;
    if (!is_last || c->wants_usage)
        n = snprintf(event, sizeof event, EVENT_START, c->id);
    if (c->left == n_chunks + 2)
        n += snprintf(event + n, sizeof event - n,
                      "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                      "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    else if (!is_last)
        n += snprintf(event + n, sizeof event - n,
                      "{\"index\":0,\"delta\":{\"content\":\" tok%d\"},"
                      "\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                      n_chunks + 2 - c->left, c->left == 2 ? "\"stop\"" : "null");
    else if (c->wants_usage)
        n += snprintf(event + n, sizeof event - n,
                      "],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,"
                      "\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n",
                      c->prompt_tokens, c->prompt_tokens + n_chunks, n_chunks);
    else
        n = snprintf(event, sizeof event, "data: [DONE]\n\n");
    put(c, chunk, snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", n, event));
    if (--c->left == 0) {
        put(c, "0\r\n\r\n", 5);
        c->streaming = 0;
        deactivate(c);
    }
    return flush(c);
}

static int start_stream(struct conn *c, const char *body, int prompt_tokens)
{
    c->wants_usage = strstr(body, "include_usage") != NULL;
    c->prompt_tokens = prompt_tokens;
    put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    c->streaming = 1;
    c->left = n_chunks + 2;
    c->due_s = now_s() + first_s;
    activate(c);
    return first_s == 0 ? flush(c) : 0;
}

static int send_answer(struct conn *c, const char *request, int prompt_tokens)
{
    char body[2048], message[4096];
    const char *type = "application/json";
    int n;
    if (!strncmp(request, "GET /v1/models", 14)) {
        n = snprintf(body, sizeof body,
                     "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\","
                     "\"created\":1,\"owned_by\":\"mock\",\"max_model_len\":131072}]}");
    } else if (!strncmp(request, "GET /metrics", 12)) {
        type = "text/plain";
        n = snprintf(body, sizeof body,
                     "# TYPE vllm:num_requests_running gauge\n"
                     "vllm:num_requests_running{engine=\"0\",model_name=\"mock\"} %d.0\n"
                     "# TYPE vllm:num_requests_waiting gauge\n"
                     "vllm:num_requests_waiting{engine=\"0\",model_name=\"mock\"} 0.0\n"
                     "# TYPE vllm:kv_cache_usage_perc gauge\n"
                     "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"mock\"} 0.0\n",
                     n_active);
    } else if (!strncmp(request, "POST", 4)) {
        n = snprintf(body, sizeof body,
                     "{\"id\":\"chatcmpl-%ld\",\"object\":\"chat.completion\","
                     "\"created\":1763650000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                     "\"message\":{\"role\":\"assistant\",\"content\":"
                     "\"hello from the mock engine\",\"tool_calls\":[]},"
                     "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
                     "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,"
                     "\"completion_tokens\":6}}",
                     c->id, prompt_tokens, prompt_tokens + 6);
    } else {    /* what the routers ask before they trust an engine */
        n = snprintf(body, sizeof body,
                     "{\"status\":\"ok\",\"model_path\":\"mock\",\"served_model_name\":\"mock\","
                     "\"tokenizer_path\":\"mock\",\"is_generation\":true,\"dp_size\":1}");
    }
    n = snprintf(message, sizeof message,
                 "HTTP/1.1 200 OK\r\ndate: Thu, 20 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                 "content-length: %d\r\ncontent-type: %s\r\n\r\n%s",
                 n, type, body);
    put(c, message, n);
    return flush(c);
}

/* Size of the request that begins the input, 0: not all of it is there. */
static size_t measure_request(struct conn *c, size_t *head_size)
{
    char *head_end, *field;
    size_t length = 0;
    c->in[c->in_size] = 0;
    head_end = strstr(c->in, "\r\n\r\n");
    if (!head_end)
        return 0;
    *head_size = head_end + 4 - c->in;
    field = strcasestr(c->in, "transfer-encoding:");
    if (field && field < head_end) {
        char *coding = strcasestr(field, "chunked");
        if (coding && coding < head_end) {
            char *end = memmem(head_end + 4, c->in_size - *head_size, "0\r\n\r\n", 5);
            return end ? (size_t)(end + 5 - c->in) : 0;
        }
    }
    field = strcasestr(c->in, "content-length:");
    if (field && field < head_end)
        length = strtoul(field + 15, NULL, 10);
    return c->in_size < *head_size + length ? 0 : *head_size + length;
}

/* Answers all requests that are there as a whole; -1: close. */
static int serve(struct conn *c)
{
    size_t size, head_size;
    while (!c->streaming && (size = measure_request(c, &head_size)) > 0) {
        char *body = c->in + head_size, kept = c->in[size];
        int failed, prompt_tokens = (int)(size - head_size) / 4;
        c->in[size] = 0;
        c->id = ++n_requests;
        if (!strncmp(c->in, "POST", 4)
            && (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true")))
            failed = start_stream(c, body, prompt_tokens) < 0;
        else
            failed = send_answer(c, c->in, prompt_tokens) < 0;
        if (failed)
            return -1;
        c->in[size] = kept;
        memmove(c->in, c->in + size, c->in_size - size);
        c->in_size -= size;
    }
    return 0;
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        struct conn *c = must(calloc(1, sizeof *c));
        set_up_socket(fd);
        c->fd = fd;
        c->slot = -1;
        c->in_room = FIRST_ROOM_BYTES;
        c->in = must(malloc(c->in_room + 1));
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

/* Reads all there is; -1: the peer has gone. */
static int read_all(struct conn *c)
{
    for (;;) {
        ssize_t n;
        if (c->in_size == c->in_room) {
            c->in_room *= 2;
            c->in = must(realloc(c->in, c->in_room + 1));
        }
        n = recv(c->fd, c->in + c->in_size, c->in_room - c->in_size, 0);
        if (n > 0)
            c->in_size += n;
        else
            return n < 0 && errno == EAGAIN ? 0 : -1;
    }
}

static void on_ready(struct conn *c, unsigned events)
{
    if (events & EPOLLOUT) {
        int state = flush(c);
        if (state < 0) {
            close_conn(c);
            return;
        }
        if (state == 0)
            watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && read_all(c) < 0)
        close_conn(c);
    else if (serve(c) < 0)
        close_conn(c);
}

static void send_due_events(void)
{
    double now = now_s();
    for (int i = n_active - 1; i >= 0; i--) {
        struct conn *c = active[i];
        if ((c->out_sent < c->out_size && gap_s == 0) || now < c->due_s)
            continue;
        c->due_s = gap_s > 0 ? c->due_s + gap_s : 0;
        if (send_event(c) < 0 || (!c->streaming && serve(c) < 0))
            close_conn(c);
    }
}

static int run_engine(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct epoll_event ready[MAX_READY];
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (argc > 1)
        n_chunks = atoi(argv[1]);
    if (argc > 2)
        gap_s = atof(argv[2]) * 1e-6;
    if (argc > 3)
        first_s = atof(argv[3]) * 1e-6;
    address.sin_port = htons(atoi(argv[0]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) {
        perror("gwbench engine: listen");
        return 1;
    }
    set_up_socket(listener);
    epoll_fd = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int wait_ms = n_active == 0 ? -1 : gap_s > 0 || first_s > 0;
        int n = epoll_wait(epoll_fd, ready, MAX_READY, wait_ms);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.ptr)
                on_ready(ready[i].data.ptr, ready[i].events);
            else
                accept_all(listener);
        }
        if (n_active)
            send_due_events();
    }
}

/* -------------------------------------------------------------------- load */

enum chunk_state { SIZE_LINE, CHUNK_DATA, CHUNK_CRLF, LAST_LINE };

struct caller {
    int fd;
    int busy, connected, closing;
    double start_s, first_s, last_s;    /* of the request, its first body byte, the newest */
    size_t sent;
    char *in;
    size_t in_size, in_room;
    int in_body, status, chunked;
    long content_length, got;
    enum chunk_state chunk_state;
    long chunk_left;
    int events, after_newline;
};

struct samples {
    double *values;
    long n, room;
};

static struct samples ttfb_s, total_s, gaps_s;
static long n_ok, n_not_200, n_errors, n_short, n_late, n_events, n_bytes;
static char *request;
static size_t request_size;
static struct sockaddr_in target;
static int wants_stream, wanted_events;
static struct caller **idle;
static int n_idle;
static double rate_per_s, end_s, hard_end_s;

static void record(struct samples *s, double value)
{
    if (s->n == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->values = must(realloc(s->values, s->room * sizeof *s->values));
    }
    s->values[s->n++] = value;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double percentile_ms(const struct samples *s, double share)
{
    return s->n ? s->values[(long)(share * (s->n - 1) + .5)] * 1e3 : 0;
}

static int dial(struct caller *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0)
        return -1;
    set_up_socket(c->fd);
    if (connect(c->fd, (void *)&target, sizeof target) && errno != EINPROGRESS)
        return -1;
    watch(EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT | EPOLLET, c);
    c->connected = c->busy = c->closing = 0;
    c->in_size = 0;
    return 0;
}

static void begin(struct caller *c, double start_s)
{
    c->busy = 1;
    c->start_s = start_s;
    c->first_s = c->last_s = 0;
    c->sent = 0;
    c->in_body = c->status = c->chunked = 0;
    c->content_length = -1;
    c->got = 0;
    c->chunk_state = SIZE_LINE;
    c->events = c->after_newline = 0;
}

/* Sends as much of the request as the socket takes; -1: the connection is broken. */
static int send_request(struct caller *c)
{
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        c->sent += n;
    }
    return 0;
}

static void take_payload(struct caller *c, const char *p, size_t n)
{
    double now = now_s();
    if (!n)
        return;
    if (!c->first_s)
        c->first_s = now;
    else if (gaps_s.n < MAX_GAPS)
        record(&gaps_s, now - c->last_s);
    c->last_s = now;
    n_bytes += n;
    for (size_t i = 0; i < n; i++) {    /* an empty line ends an event */
        if (p[i] != '\n') {
            c->after_newline = 0;
            continue;
        }
        if (c->after_newline) {
            c->events++;
            n_events++;
        }
        c->after_newline = !c->after_newline;
    }
}

/* Reads the response's head; its size, or 0: not all of it is there. */
static size_t take_head(struct caller *c)
{
    char *end, *field;
    c->in[c->in_size] = 0;
    end = strstr(c->in, "\r\n\r\n");
    if (!end)
        return 0;
    c->in_body = 1;
    c->status = atoi(c->in + 9);
    field = strcasestr(c->in, "\r\ncontent-length:");
    if (field && field < end)
        c->content_length = strtol(field + 17, NULL, 10);
    field = strcasestr(c->in, "\r\ntransfer-encoding:");
    c->chunked = field && field < end;
    field = strcasestr(c->in, "\r\nconnection: close");
    c->closing = field && field < end;
    return end + 4 - c->in;
}

/* Walks chunks from *pos on; 1: the last one has ended. */
static int take_chunks(struct caller *c, size_t *pos)
{
    while (*pos < c->in_size) {
        char *p = c->in + *pos, *line_end;
        size_t n = c->in_size - *pos;
        if (c->chunk_state == CHUNK_DATA) {
            if (n > (size_t)c->chunk_left)
                n = c->chunk_left;
            take_payload(c, p, n);
            *pos += n;
            c->chunk_left -= n;
            if (!c->chunk_left)
                c->chunk_state = CHUNK_CRLF;
            continue;
        }
        if (c->chunk_state == CHUNK_CRLF) {
            if (n < 2)
                return 0;
            *pos += 2;
            c->chunk_state = SIZE_LINE;
            continue;
        }
        line_end = memchr(p, '\n', n);
        if (!line_end)
            return 0;
        *pos += line_end + 1 - p;
        if (c->chunk_state == LAST_LINE)
            return 1;
        c->chunk_left = strtol(p, NULL, 16);
        c->chunk_state = c->chunk_left ? CHUNK_DATA : LAST_LINE;
    }
    return 0;
}

static void count_response(struct caller *c)
{
    double now = now_s();
    if (c->status != 200)
        n_not_200++;
    else if (wants_stream && wanted_events && c->events < wanted_events)
        n_short++;
    else
        n_ok++;
    record(&ttfb_s, (c->first_s ? c->first_s : now) - c->start_s);
    record(&total_s, now - c->start_s);
}

/* Deals with what has come; 1: the response is complete. */
static int take_response(struct caller *c)
{
    size_t pos = 0, n;
    int over = 0;
    if (!c->in_body && !(pos = take_head(c)))
        return 0;
    if (c->chunked) {
        over = take_chunks(c, &pos);
    } else {    /* without a length the end is the connection's, and counts as an error */
        n = c->in_size - pos;
        if (c->content_length >= 0 && (long)n > c->content_length - c->got)
            n = c->content_length - c->got;
        take_payload(c, c->in + pos, n);
        pos += n;
        c->got += n;
        over = c->got == c->content_length;
    }
    memmove(c->in, c->in + pos, c->in_size - pos);
    c->in_size -= pos;
    if (over)
        count_response(c);
    return over;
}

/* The connection is free for the next request; -1: it is broken. */
static int next_request(struct caller *c)
{
    c->busy = 0;
    if (c->closing)
        return -1;
    if (rate_per_s > 0) {
        idle[n_idle++] = c;
    } else if (now_s() < end_s) {
        begin(c, now_s());
        return send_request(c);
    }
    return 0;
}

/* Reads and acts on all there is; -1: the connection has ended. */
static int receive(struct caller *c)
{
    for (;;) {
        ssize_t n;
        if (c->in_size == c->in_room) {
            c->in_room *= 2;
            c->in = must(realloc(c->in, c->in_room + 1));
        }
        n = recv(c->fd, c->in + c->in_size, c->in_room - c->in_size, 0);
        if (n <= 0)
            return n < 0 && errno == EAGAIN ? 0 : -1;
        c->in_size += n;
        if (c->busy && take_response(c) && next_request(c) < 0)
            return -1;
    }
}

static void reconnect(struct caller *c)
{
    if (c->busy)
        n_errors++;
    for (int i = 0; i < n_idle; i++) {
        if (idle[i] == c) {
            idle[i] = idle[--n_idle];
            break;
        }
    }
    c->busy = 0;
    close(c->fd);
    if (now_s() < hard_end_s && dial(c) < 0)
        n_errors++;
}

static void on_event(struct caller *c, unsigned events)
{
    unsigned broken = events & (EPOLLERR | EPOLLHUP);
    if (!c->connected && events & EPOLLOUT && !broken) {
        c->connected = 1;
        if (rate_per_s > 0)
            idle[n_idle++] = c;
        else if (now_s() < end_s)
            begin(c, now_s());
    }
    if (c->busy && c->sent < request_size && send_request(c) < 0)
        reconnect(c);
    else if ((events & EPOLLIN || broken) && receive(c) < 0)
        reconnect(c);
}

/* Starts what an open loop has scheduled up to now; returns when the next request is due. */
static double start_due(double next_s, double now)
{
    while (next_s <= now && next_s < end_s) {
        if (n_idle) {
            struct caller *c = idle[--n_idle];
            begin(c, next_s);
            if (send_request(c) < 0)
                n_errors++;
        } else {
            n_late++;       /* all connections are in use: more of them are needed */
        }
        next_s += -log(1 - drand48()) / rate_per_s;
    }
    return next_s;
}

static int any_busy(const struct caller *callers, int n)
{
    for (int i = 0; i < n; i++)
        if (callers[i].busy)
            return 1;
    return 0;
}

static int read_body(const char *path, char **body, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return -1;
    }
    *body = must(malloc(MAX_BODY_BYTES + 1));
    *size = fread(*body, 1, MAX_BODY_BYTES + 1, file);
    fclose(file);
    if (*size > MAX_BODY_BYTES) {
        fprintf(stderr, "%s: larger than %d bytes\n", path, MAX_BODY_BYTES);
        return -1;
    }
    (*body)[*size] = 0;
    return 0;
}

static int build_request(int argc, char **argv, const char *body, size_t size)
{
    const char *path = argc > 6 ? argv[6] : "/v1/chat/completions", *key = getenv("GWBENCH_KEY");
    int n;
    request = must(malloc(size + MAX_HEAD_BYTES));
    n = snprintf(request, MAX_HEAD_BYTES,
                 "POST %s HTTP/1.1\r\nHost: %s:%s\r\nAccept: */*\r\n"
                 "Accept-Encoding: gzip, deflate\r\nUser-Agent: OpenAI/Python 1.60.0\r\n"
                 "Content-Type: application/json\r\nAuthorization: Bearer %s\r\n",
                 path, argv[0], argv[1], key ? key : "sk-test");
    for (int i = 7; i < argc && n < MAX_HEAD_BYTES; i++)
        n += snprintf(request + n, MAX_HEAD_BYTES - n, "%s\r\n", argv[i]);
    if (n < MAX_HEAD_BYTES)
        n += snprintf(request + n, MAX_HEAD_BYTES - n, "Content-Length: %zu\r\n\r\n", size);
    if (n >= MAX_HEAD_BYTES) {
        fprintf(stderr, "gwbench load: the head is larger than %d bytes\n", MAX_HEAD_BYTES);
        return -1;
    }
    memcpy(request + n, body, size);
    request_size = n + size;
    return 0;
}

static void print_results(double seconds, double elapsed_s)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    qsort(ttfb_s.values, ttfb_s.n, sizeof(double), compare);
    qsort(total_s.values, total_s.n, sizeof(double), compare);
    qsort(gaps_s.values, gaps_s.n, sizeof(double), compare);
    printf("{\"ok\":%ld,\"non200\":%ld,\"errors\":%ld,\"short\":%ld,\"late\":%ld,\"secs\":%.2f,"
           "\"rps\":%.1f,\"events_per_s\":%.0f,\"MBps\":%.1f,",
           n_ok, n_not_200, n_errors, n_short, n_late, elapsed_s, total_s.n / seconds,
           n_events / seconds, n_bytes / seconds / 1e6);
    printf("\"ttfb_ms\":{\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f},",
           percentile_ms(&ttfb_s, .5), percentile_ms(&ttfb_s, .9), percentile_ms(&ttfb_s, .99),
           percentile_ms(&ttfb_s, .999));
    printf("\"total_ms\":{\"p50\":%.3f,\"p99\":%.3f},\"gap_ms\":{\"p50\":%.4f,\"p99\":%.4f},",
           percentile_ms(&total_s, .5), percentile_ms(&total_s, .99),
           percentile_ms(&gaps_s, .5), percentile_ms(&gaps_s, .99));
    printf("\"load_cpu_s\":%.2f}\n",
           usage.ru_utime.tv_sec + usage.ru_utime.tv_usec * 1e-6 + usage.ru_stime.tv_sec
               + usage.ru_stime.tv_usec * 1e-6);
}

static int run_load(int argc, char **argv)
{
    struct epoll_event ready[MAX_READY];
    struct caller *callers;
    char *body, *events = getenv("WANT_EVENTS");
    size_t size;
    int n_callers;
    double seconds, start_s, next_s;
    if (argc < 5) {
        fprintf(stderr, "gwbench load HOST PORT BODYFILE CONNS SECONDS [RATE] [PATH] [HEADER...]\n");
        return 2;
    }
    if (read_body(argv[2], &body, &size) || build_request(argc, argv, body, size))
        return 2;
    n_callers = atoi(argv[3]);
    seconds = atof(argv[4]);
    rate_per_s = argc > 5 ? atof(argv[5]) : 0;
    wants_stream = strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true");
    wanted_events = events ? atoi(events) : 0;
    target.sin_family = AF_INET;
    target.sin_port = htons(atoi(argv[1]));
    if (inet_pton(AF_INET, argv[0], &target.sin_addr) != 1) {
        fprintf(stderr, "gwbench load: %s is not an IPv4 address\n", argv[0]);
        return 2;
    }
    epoll_fd = epoll_create1(0);
    callers = must(calloc(n_callers, sizeof *callers));
    idle = must(malloc(n_callers * sizeof *idle));
    for (int i = 0; i < n_callers; i++) {
        callers[i].in_room = LOAD_ROOM_BYTES;
        callers[i].in = must(malloc(callers[i].in_room + 1));
        if (dial(&callers[i])) {
            perror("gwbench load: connect");
            return 1;
        }
    }
    start_s = next_s = now_s();
    end_s = start_s + seconds;
    hard_end_s = end_s + GRACE_S;
    srand48(1);
    for (;;) {
        double now = now_s();
        int n, wait_ms = 100;
        if (rate_per_s > 0 && now < end_s) {
            next_s = start_due(next_s, now);
            wait_ms = (int)((next_s - now) * 1000);
            wait_ms = wait_ms < 0 ? 0 : wait_ms > 100 ? 100 : wait_ms;
        }
        if (now >= end_s && (now > hard_end_s || !any_busy(callers, n_callers)))
            break;
        n = epoll_wait(epoll_fd, ready, MAX_READY, wait_ms);
        for (int i = 0; i < n; i++)
            on_event(ready[i].data.ptr, ready[i].events);
    }
    print_results(seconds, now_s() - start_s);
    return 0;
}

/* Two descriptors per stream on the proxy, one each here: take all that the system allows. */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    if (argc > 2 && !strcmp(argv[1], "engine"))
        return run_engine(argc - 2, argv + 2);
    if (argc > 2 && !strcmp(argv[1], "load"))
        return run_load(argc - 2, argv + 2);
    fprintf(stderr, "gwbench engine PORT ... | gwbench load HOST PORT BODYFILE CONNS SECONDS ...\n");
    return 2;
}
