/* SPDX-License-Identifier: Apache-2.0
 *
 * The lane protocol (libipc/lane/{writer,reader,wait}.c) with one store buffer per process, as x86-TSO has it.
 * run.sh picks a configuration and a mutation by -D; README.md lists both and maps the steps to functions.
 *
 * Every atomic step touches shared memory once. Each word has one writer, who keeps a private copy and never
 * loads its own word, so that loads need not look into the own buffer. The bounded wait that lies below every
 * sleep is left out: whoever is not woken sleeps for ever, and Spin reports an invalid end state. Retries are
 * finite: an endless loop runs into the assertion on its counter.
 */

/* ---- configuration ---------------------------------------------------------------------------------------- */
#ifndef R
#define R 1 /* readers */
#endif
#ifndef STALE
#define STALE 0 /* what the cell's cursor says before the reader attaches */
#endif
#ifndef N
#define N 4 /* words of the ring */
#endif
#ifndef SZ
#define SZ 1 /* words of a record: 1 its word alone, 2 and a body word */
#endif
#ifndef M
#define M 3 /* messages */
#endif
#ifndef STEP
#define STEP 1 /* a reader reports at least this many words read */
#endif
#ifndef KILLS
#define KILLS 0
#endif
#define B       2 /* stores in a store buffer */
#define END     (M * SZ)
#define NONE    255
#define PAIRING 2
#ifdef M_ROOM_NO_STAMP
#define NEED SZ
#else
#define NEED (SZ + 1) /* the word behind the record is overwritten too: by the stamp of the next one */
#endif
#if defined(DROP) || defined(JOIN)
#define TAILS 1
#endif
#if defined(JOIN) || defined(KILLW) || defined(KILLR)
#define MAILS 1
#endif

/* ---- memory ----------------------------------------------------------------------------------------------- */
#define W(p)      ((p) % N)
#define TAIL      (N)
#define WANT      (N + 1)
#define START(r)  (N + 2 + (r))
#define CURSOR(r) (N + 2 + R + (r))
#define OWNER(r)  (N + 2 + 2 * R + (r))
#define ARMED(r)  (N + 2 + 3 * R + (r))
#define MAIL(p)   (N + 2 + 4 * R + (p))
#define WORDS     (N + 3 + 5 * R)

#ifdef M_NO_LAP
#define LAP(p) 0
#else
#define LAP(p) ((p) / N) /* the stamp of an uncommitted record word */
#endif
#define RECORD(p)    (32 + (p))
#define COMMITTED(w) ((w) >= 32)
#ifdef M_BODY_LIKE_STAMP
#define BODY(p) 0
#else
#define BODY(p) (64 + (p)) /* looks like a committed record, and is none */
#endif

byte mem[WORDS];
#define PROCS (1 + R) /* 0: the writer, 1 + r: reader r */
byte ba[PROCS * B], bv[PROCS * B], bn[PROCS];
byte slp[PROCS]; /* sleeps in the kernel on this word + 1; 0: awake */
bit dead[PROCS];
byte box[PROCS]; /* notices in the session's socket */
#define ADD    1
#define DEL(r) (2 << (r))
byte kills = KILLS;
#ifdef BELL
bit bell[R];
#endif

/* Ghosts: what the properties speak of. */
byte issued;          /* end of the last record for which the commit was issued */
byte promised = NONE; /* the head when the writer began to count the joining reader */
bit confirmed;        /* the writer let go of the pairing before */
bit leave;

inline flush1(p) {
    mem[ba[(p) * B]] = bv[(p) * B];
    ba[(p) * B] = ba[(p) * B + 1]; bv[(p) * B] = bv[(p) * B + 1];
    ba[(p) * B + 1] = 0; bv[(p) * B + 1] = 0;
    bn[p]--
}
inline drain(p) {
    do
    :: bn[p] > 0 -> flush1(p)
    :: else -> break
    od
}
inline put(p, a, v) {
    if
    :: bn[p] == B -> flush1(p)
    :: else
    fi;
    ba[(p) * B + bn[p]] = a; bv[(p) * B + bn[p]] = v;
    bn[p]++
}
/* A killed process stops in front of a step; what it has stored reaches memory all the same. */
#ifdef KILLW
#define KW if :: kills > 0 -> kills--; goto killed :: true fi;
#else
#define KW
#endif
#ifdef KILLR
#define KR if :: kills > 0 && r == 0 -> kills--; goto killed :: true fi;
#else
#define KR
#endif
inline store_w(a, v) { atomic { KW put(0, a, v) } }
inline store_r(a, v) { atomic { KR put(p, a, v) } }

inline fence(self) { atomic { drain(self) } }

/* membarrier(GLOBAL_EXPEDITED): interrupts whoever runs, one after the other. */
inline barrier(self) {
    d_step { drain(self) }
    b = 0;
    do
    :: b < PROCS -> d_step { drain(b); b++ }
    :: else -> break
    od;
    b = 0
}
inline wake(self, a) { /* in an atomic step: FUTEX_WAKE of all, a full barrier for the caller */
    drain(self);
    b = 0;
    do
    :: b < PROCS -> if :: slp[b] == (a) + 1 -> slp[b] = 0 :: else fi; b++
    :: else -> break
    od;
    b = 0
}
inline notify(p, n) { /* core: a frame into the socket, then the mail word, then the wake */
    atomic { box[p] = box[p] | (n) }
    atomic {
        mem[MAIL(p)] = mem[MAIL(p)] + 1;
#ifndef M_CORE_NO_WAKE
        slp[p] = 0
#endif
    }
}

active proctype Flush() {
    byte p;
end:
    do
    :: d_step { bn[0] > 0 -> flush1(0) }
    :: d_step { bn[1] > 0 -> flush1(1) }
#if R > 1
    :: d_step { bn[2] > 0 -> flush1(2) }
#endif
    od
}

#ifdef M_MAIL_NOT_COMPARED
#define MAIL_AS_SEEN(p) true
#else
#define MAIL_AS_SEEN(p) (mem[MAIL(p)] == seen)
#endif

/* ---- the writer ------------------------------------------------------------------------------------------- */
bit counted[R];

/* ipc_lane_writer_cursors: the slowest counted reader, and the word to wait on until it is not (wa == wv). */
inline load_cursors() {
    min = NONE; wa = 0; wv = 0; i = 0;
    do
    :: i < R && counted[i] ->
#ifdef JOIN
#ifdef M_CURSOR_BEFORE_OWNER
        atomic { KW c = mem[CURSOR(i)] }
#endif
        atomic { KW a = mem[OWNER(i)] }
        if
        :: a == pairing ->
#ifndef M_CURSOR_BEFORE_OWNER
            atomic { KW c = mem[CURSOR(i)] }
#endif
            atomic {
                assert(c <= pos); /* else an honest reader would be taken for a corrupt one */
                if :: c < from && c < min -> min = from; wa = CURSOR(i); wv = c
                   :: c >= from && c < min -> min = c; wa = CURSOR(i); wv = c
                   :: else fi;
                c = 0
            }
        :: else -> /* not attached yet: it stands at its start */
#ifdef M_WAIT_CURSOR_UNOWNED
            atomic { KW c = mem[CURSOR(i)]; min = from; wa = CURSOR(i); wv = c; c = 0 }
#else
            atomic { min = from; wa = OWNER(i); wv = a }
#endif
        fi;
        a = 0;
#else
        atomic {
            KW c = mem[CURSOR(i)];
            assert(c <= pos);
            if :: c < min -> min = c; wa = CURSOR(i); wv = c :: else fi;
            c = 0
        }
#endif
        i++
    :: i < R && !counted[i] -> i++
    :: else -> break
    od;
    i = 0
}

#ifdef OLDEST
#define OWN_CHOICE tail
#else
#define OWN_CHOICE head
#endif
/* Take in what the mail word announced. `head`: where the next record goes. */
inline take_in(head) {
#ifdef M_SEEN_LATE
    atomic { KW drain(0); n = box[0]; box[0] = 0 }
    atomic { KW seen = mem[MAIL(0)] }
#else
    atomic { KW seen = mem[MAIL(0)] }
    atomic { KW drain(0); n = box[0]; box[0] = 0 }
#endif
#ifdef KILLR
    atomic {
        if :: n & DEL(0) -> counted[0] = 0 :: else fi;
#if R > 1
        if :: n & DEL(1) -> counted[1] = 0 :: else fi;
#endif
    }
#endif
#ifdef JOIN
    if
    :: n & DEL(0) ->
        counted[0] = 0;
        store_w(START(0), 0);
        atomic { drain(0); confirmed = 1 }
    :: else
    fi;
    if
    :: n & ADD ->
        pairing = PAIRING;
#ifdef M_CURSOR_BEFORE_OWNER
        atomic { c = mem[CURSOR(0)] }
#endif
        atomic { a = mem[OWNER(0)] }
        if
        :: a == pairing ->
#ifdef M_CURSOR_BEFORE_OWNER
            from = c
#else
            atomic { from = mem[CURSOR(0)] }
#endif
        :: else -> from = OWN_CHOICE
        fi;
        atomic { a = 0; c = 0; counted[0] = 1; rung[0] = 0; promised = head }
        store_w(START(0), from + 1)
#ifdef M_RING_AT_TAKE_IN
        ;
        atomic {
            if
            :: mem[ARMED(0)] & 1 -> rung[0] = mem[ARMED(0)]; wake(0, W(head))
            :: else
            fi
        }
#endif
    :: else
    fi;
#endif
    n = 0
}

/* lane_writer_ring: at most one ring per armed value, and only for a sleeper whose record is there. A reader
 * that has read this record already and sleeps on the next one is left alone: its value is still to be rung. */
inline ring(record) {
    i = 0;
    do
    :: i < R ->
        if
        :: counted[i] ->
            atomic { KW a = mem[ARMED(i)] }
            if
            :: (a & 1) && a != rung[i] ->
#ifndef M_RING_ANY_CURSOR
                atomic { KW c = mem[CURSOR(i)] }
#endif
                if
                :: c <= (record) ->
                    atomic {
                        KW
                        rung[i] = a;
#ifdef BELL
                        bell[i] = 1
#elif defined(MORE) && !defined(M_RING_LAST)
                        wake(0, W(c)) /* where it sleeps: the first record that it was not rung for */
#else
                        wake(0, W(record))
#endif
                    }
                :: else
                fi
            :: else
            fi
        :: else
        fi;
        atomic { a = 0; c = 0; i++ }
    :: else -> break
    od;
    i = 0
}

/* lane_writer_ring_held */
inline ring_held() {
#ifdef MORE
    if
    :: held -> ring(pos - SZ); held = 0
    :: else
    fi
#else
    skip
#endif
}

inline check_mail(head) {
#ifdef MAILS
    atomic { KW n = mem[MAIL(0)] }
    if
    :: n != seen -> n = 0; take_in(head)
    :: else -> n = 0
    fi
#else
    skip
#endif
}

proctype Writer() {
    byte pos, tail, target, min, wa, wv, c, a, n, i, b, seen, from, pairing, tries;
    byte rung[R];
    bit held;

#ifdef REUSE
    atomic { counted[0] = 1; pairing = 1 }
#endif
    do
    :: pos < END ->
#ifdef M_MAIL_BEFORE_COMMIT
        check_mail(pos);
#endif
        /* lane_writer_reserve */
        if
        :: pos + NEED > tail + N ->
#ifndef M_NO_RING_ROOM
            ring_held();
#endif
            target = ((pos + NEED - N + SZ - 1) / SZ) * SZ;
#ifndef DROP
            load_cursors();
            if
            :: min < target -> /* lane_writer_want */
#ifndef M_NO_WANT
                store_w(WANT, target);
#endif
#ifndef M_NO_FENCE_ROOM
                fence(0);
#endif
#ifndef M_NO_REREAD_ROOM
                load_cursors();
#endif
                do
                :: min < target ->
                    atomic { tries++; assert(tries < 6 * M) }
                    atomic {
                        KW
                        drain(0);
                        if
                        :: mem[wa] == wv && MAIL_AS_SEEN(0) -> slp[0] = wa + 1
                        :: else
                        fi
                    }
#ifdef KILLW
                    if
                    :: slp[0] == 0
                    :: atomic { kills > 0 -> kills--; slp[0] = 0; goto killed }
                    fi;
#else
                    slp[0] == 0;
#endif
                    check_mail(pos);
                    load_cursors()
                :: else -> break
                od;
                tries = 0;
#ifndef M_WANT_KEPT
                store_w(WANT, 0)
#endif
            :: else
            fi;
            atomic { min = 0; wa = 0; wv = 0 }
#endif
            tail = target;
            target = 0;
#if defined(TAILS) && !defined(M_TAIL_AFTER)
            store_w(TAIL, tail)
#endif
        :: else
        fi;
#if SZ > 1
        store_w(W(pos + 1), BODY(pos));
#endif
        /* lane_writer_commit */
#ifdef M_RING_BEFORE_COMMIT
        ring(pos);
#endif
#ifdef M_COMMIT_BEFORE_STAMP
        store_w(W(pos), RECORD(pos));
        issued = pos + SZ;
        store_w(W(pos + SZ), LAP(pos + SZ));
#else
#ifndef M_NO_STAMP
        store_w(W(pos + SZ), LAP(pos + SZ));
#endif
        atomic { KW put(0, W(pos), RECORD(pos)); issued = pos + SZ }
#endif
#if defined(TAILS) && defined(M_TAIL_AFTER)
        store_w(TAIL, tail);
#endif
#ifdef MORE
        if /* as the caller likes */
        :: held = 1
        :: ring(pos); held = 0
        fi;
#elif !defined(M_RING_BEFORE_COMMIT)
        ring(pos);
#endif
#if defined(MAILS) && !defined(M_MAIL_BEFORE_COMMIT)
        atomic { KW n = mem[MAIL(0)] }
        if
        :: n != seen -> n = 0; take_in(pos + SZ); ring(pos)
        :: else -> n = 0
        fi;
#endif
        pos = pos + SZ
    :: else -> break
    od;
#ifndef M_NO_RING_HELD
    ring_held();
#endif
killed:
    dead[0] = 1
}

/* ---- a reader --------------------------------------------------------------------------------------------- */
/* lane_reader_report */
inline report() {
    if
    :: pos != stored ->
#ifdef M_CURSOR_AFTER_WANT
        atomic { KR w = mem[WANT] }
        store_r(CURSOR(r), pos);
#else
        store_r(CURSOR(r), pos);
#ifndef M_NO_FENCE_REPORT
        fence(p);
#endif
        atomic { KR w = mem[WANT] }
#endif
        if
        :: w != 0 && stored < w && w <= pos -> atomic { KR wake(p, CURSOR(r)) }
        :: else
        fi;
        atomic { w = 0; stored = pos }
    :: else
    fi
}
inline jump() { /* t: the tail, beyond pos */
    atomic {
#ifndef DROP
        assert(promised == NONE || t <= promised);
#endif
        lost = lost + t - pos;
        pos = t;
        t = 0
    }
}

proctype Reader(byte r) {
    byte p = 1 + r, pos, stored, w, d, t, b, armed, seen, got, lost, n, first = NONE;
    bit safe, ended;

#ifdef JOIN
#ifdef REUSE
    leave = 1;
#endif
    atomic { box[p] != 0 -> box[p] = 0; seen = mem[MAIL(p)] }
    /* lane_reader_init */
    atomic { t = mem[START(r)] }
    if
    :: t != 0 -> pos = t - 1
    :: else ->
        atomic { pos = mem[TAIL] }
#ifndef OLDEST
        do
        :: atomic { w = mem[W(pos)] }
            atomic { t = mem[TAIL] }
            if
            :: t > pos -> pos = t
            :: t <= pos && COMMITTED(w) -> pos = pos + SZ
            :: t <= pos && !COMMITTED(w) -> assert(w == LAP(pos)); break
            fi
        od;
#endif
#ifndef M_START_NOT_REREAD
        /* Once more, after the walk: if it is still not set, the writer will not choose an earlier one. */
        atomic { t = mem[START(r)] }
        if
        :: t != 0 -> pos = t - 1
        :: else
        fi
#endif
    fi;
    atomic { t = 0; w = 0; stored = pos }
#ifdef M_OWNER_BEFORE_CURSOR
    store_r(OWNER(r), PAIRING);
    store_r(CURSOR(r), pos);
#else
    store_r(CURSOR(r), pos);
    store_r(OWNER(r), PAIRING);
#endif
#ifndef M_NO_RING_AT_ATTACH
    fence(p);
    atomic { w = mem[WANT] }
    if
    :: w != 0 -> atomic { wake(p, OWNER(r)) }
    :: else
    fi;
    w = 0;
#endif
#endif

look: /* lane_reader_peek */
    if
    :: pos == END -> goto done
    :: else
    fi;
#if defined(JOIN) && !defined(DROP)
    if
    :: !safe ->
        /* Counted, and not overwritten before that: from here on no copy is void. */
        atomic { t = mem[START(r)] }
        if
        :: t != 0 && t - 1 <= pos ->
            atomic { t = mem[TAIL] }
            if
            :: t <= pos -> safe = 1; t = 0
#ifdef M_SAFE_WITHOUT_TAIL
            :: t > pos -> safe = 1; t = 0
#else
            :: t > pos -> jump(); goto look
#endif
            fi
        :: else -> t = 0
        fi
    :: else
    fi;
#endif
    atomic { KR w = mem[W(pos)] }
    if
    :: COMMITTED(w) ->
#if SZ > 1
        atomic { KR d = mem[W(pos + 1)] }
#endif
#ifdef TAILS
        if
        :: !safe ->
#ifndef M_NO_TAIL_CHECK
            atomic { KR t = mem[TAIL] }
            if
            :: t > pos -> w = 0; d = 0; jump(); report(); goto look
            :: else -> t = 0
            fi
#endif
        :: else
        fi;
#endif
        atomic {
            assert(w == RECORD(pos));
#if SZ > 1
            assert(d == BODY(pos));
#endif
            if :: first == NONE -> first = pos :: else fi;
            got = got + SZ;
            pos = pos + SZ;
            w = 0;
            d = 0
        }
        if
        :: pos - stored >= STEP -> report()
        :: else
        fi;
        goto look
    :: w == LAP(pos) -> w = 0
    :: else -> /* the stamp of a later lap, or bytes of a body */
#ifdef M_ANY_STAMP_IS_EMPTY
        w = 0
#else
#ifdef TAILS
        atomic { KR t = mem[TAIL] }
        w = 0;
        assert(t > pos);
        jump();
        report();
        goto look
#else
        assert(false)
#endif
#endif
    fi;

    /* Empty. The cursor goes out before armed does: ring() relies on it. */
#ifndef M_ARMED_BEFORE_CURSOR
    report();
#endif
    if
    :: ended -> goto done
    :: else
    fi;
    /* lane_reader_arm */
    atomic { armed++; assert(armed < 8 * (M + 2)) }
#ifndef M_SAME_ARMED
    store_r(ARMED(r), armed);
#else
    store_r(ARMED(r), 1);
#endif
#ifdef M_ARMED_BEFORE_CURSOR
    report();
#endif
#ifndef M_NO_BARRIER_SLEEP
    barrier(p);
#endif
    /* lane_sleep */
#ifndef M_NO_RELOOK
    atomic { KR w = mem[W(pos)] }
    if
    :: w != LAP(pos) -> goto disarm
    :: else -> w = 0
    fi;
#endif
#ifdef BELL
    atomic { drain(p) }
    bell[r];
    bell[r] = 0;
#else
    atomic {
        KR
        drain(p);
        if
        :: mem[W(pos)] == LAP(pos) && MAIL_AS_SEEN(p) -> slp[p] = W(pos) + 1
        :: else
        fi
    }
#ifdef KILLR
    if
    :: slp[p] == 0
    :: atomic { kills > 0 && r == 0 -> kills--; slp[p] = 0; goto killed }
    fi;
#else
    slp[p] == 0;
#endif
#endif
disarm:
    w = 0;
    armed++;
#ifndef M_SAME_ARMED
    store_r(ARMED(r), armed);
#else
    store_r(ARMED(r), 0);
#endif
#ifdef MAILS
    atomic { KR n = mem[MAIL(p)] }
    if
    :: n != seen ->
        seen = n;
        atomic { n = box[p]; box[p] = 0 }
#ifdef KILLW
#ifdef M_NO_FINAL_DRAIN
        if :: n != 0 -> ended = 1; goto done :: else fi;
#else
        if :: n != 0 -> ended = 1 :: else fi;
#endif
#endif
        n = 0
    :: else -> n = 0
    fi;
#endif
    goto look;

done:
#ifdef KILLW
    assert(pos == issued);
#endif
    atomic {
#ifndef JOIN
        assert(got + lost == pos)
#endif
#if defined(JOIN) && !defined(DROP)
        /* What is published after the writer counts the reader reaches it (no gap later on: see jump). */
        assert(promised == NONE || promised == END || (first != NONE && first <= promised));
#endif
        skip
    }
    report();
killed:
    dead[p] = 1
}

/* ---- the core --------------------------------------------------------------------------------------------- */
#ifdef JOIN
active proctype Core() {
#ifdef REUSE
    leave == 1;
    notify(0, DEL(0));
#ifndef M_REUSE_EARLY
    confirmed == 1;
#endif
#endif
#ifdef NUDGE
    notify(0, 0);
#endif
#ifdef M_READER_FIRST
    notify(1, ADD);
    notify(0, ADD)
#else
    notify(0, ADD);
    notify(1, ADD)
#endif
}
#endif
#if defined(KILLW) && !defined(M_CORE_FORGETS)
active proctype Core() {
#ifdef M_CORE_EARLY
    dead[0] == 1;
#else
    atomic { dead[0] == 1 -> bn[0] == 0 } /* exit returns to the kernel: nothing of it is on the way any more */
#endif
    byte r;
    do
    :: r < R -> notify(1 + r, DEL(0)); r++
    :: else -> break
    od
}
#endif
#if defined(KILLR) && !defined(M_CORE_FORGETS)
active proctype Core() {
    atomic { dead[1] == 1 -> bn[1] == 0 }
    notify(0, DEL(0))
}
#endif

init {
    byte r;
    atomic {
#ifdef JOIN
        /* What a pairing before left in the cell. */
#ifdef REUSE
        mem[START(0)] = 1; mem[OWNER(0)] = 1; mem[CURSOR(0)] = 0;
#else
        mem[CURSOR(0)] = STALE;
#endif
#endif
        do
        :: r < R ->
#ifndef JOIN
            counted[r] = 1;
#endif
            run Reader(r);
            r++
        :: else -> break
        od;
        run Writer()
    }
}
