/*
 * The lease: nodes prove through the journal that they are fresh; a publisher computes when one that it cannot reach
 * has certainly stopped.
 *
 * G6: after the moment from which a node counts as fenced it accepts nothing from the revoked user.
 * G7: the verdict says "complete" only if every node has cut, and "complete, fenced" only if each has cut or is fenced.
 *
 * Two facts on one subject (so that the second replaces the first in the journal), heartbeats of each node on a subject
 * of its own, discrete time. Each node is served by a replica whose view of the journal is some prefix of it, and may
 * be cut off at any time, for any time: nothing in the model has to happen.
 */

#ifndef NODES
#define NODES 2
#endif
#ifndef BEATS
#define BEATS 2                   /* heartbeats per node */
#endif
#ifndef END
#define END 4                     /* the last moment */
#endif
#define LEASE 1                   /* in ticks; the clock stops at END */

#define ENTRIES (2 + NODES * BEATS)
#define NEVER 255

#define FACTS 0                   /* kinds of journal entries: facts, then the heartbeats of each node */
#define BEAT(n) (1 + (n))

byte now;
byte last;                        /* the journal: entries 1..last, never rewritten here; a view hides what it replaced */
byte kind[ENTRIES + 1];
byte beatNumber[ENTRIES + 1];

/* The nodes. */
byte view[NODES];                 /* the replica has the entries up to here */
byte pos[NODES];
bool knows[NODES];                /* a fact about the user is in the table */
byte sent[NODES];                 /* heartbeats sent by this process and those before */
byte firstOfBoot[NODES];          /* the number of this boot's first heartbeat */
byte sentAt[NODES * (BEATS + 1)]; /* remembered time of each heartbeat, by number */
byte flying[NODES];               /* number of the heartbeat that may yet be stored; 0: none */
byte proven[NODES];               /* number of the newest own heartbeat delivered back */
byte leaseEnd[NODES];
bool serves[NODES];               /* on_stale: serve */
bool restarted[NODES];

/* The publisher of the first fact. */
byte seqR;                        /* where it was stored */
byte seenAt = NEVER;              /* m: when the publisher saw it stored */
bool receipt[NODES];              /* "cut", from the boot that lived when the fact was stored */

#define AT(n, b) ((n) * (BEATS + 1) + (b))
#define fresh(n) (now < leaseEnd[n] || (serves[n] && leaseEnd[n] > 0))
#define accepts(n) (fresh(n) && !knows[n])

#if defined(FENCE_WITHOUT_LEASE)
#define FENCE (seenAt)
#elif defined(FENCE_FROM_PUBLISH)
#define FENCE (publishedAt + LEASE)
byte publishedAt;
#else
#define FENCE (seenAt + LEASE)
#endif

#ifdef FENCE_WHAT_SERVES_ON
#define fenced(n) (seenAt != NEVER && now >= FENCE)
#else
#define fenced(n) (seenAt != NEVER && now >= FENCE && !serves[n])
#endif

inline append(k, b) {
	last++;
	kind[last] = k;
	beatNumber[last] = b
}

/* replaced: a later entry of the same kind is in the view. ENTRIES is small, so the search is by hand. */
inline isReplaced(n, e, answer) {
	j = e + 1;
	answer = false;
	do
	:: j <= view[n] ->
		if
		:: kind[j] == kind[e] -> answer = true
		:: else
		fi;
		j++
	:: else -> break
	od
}

/* deliver takes the next entry that the view has, with what the server says about more to come. */
inline deliver(n) {
	e = pos[n] + 1;
	do
	:: e > view[n] -> break
	:: else ->
		isReplaced(n, e, gone);
		if
		:: gone -> e++
		:: else -> break
		fi
	od;
	if
	:: e <= view[n] ->
		pos[n] = e;
		if
		:: kind[e] == FACTS -> knows[n] = true
		:: kind[e] == BEAT(n) && beatNumber[e] >= firstOfBoot[n] -> proven[n] = beatNumber[e]
		:: else
		fi;
		/* An entry behind the view's end is pending, since the last entry of a view is never replaced in it. */
#ifdef FRESH_WITHOUT_NOTHING_PENDING
		if
		:: proven[n] > 0
#else
		if
		:: proven[n] > 0 && pos[n] == view[n]
#endif
			->
#ifdef REMEMBER_THE_RETURN
			leaseEnd[n] = now + LEASE
#else
			leaseEnd[n] = (sentAt[AT(n, proven[n])] + LEASE > leaseEnd[n] -> sentAt[AT(n, proven[n])] + LEASE : leaseEnd[n])
#endif
		:: else
		fi
	:: else
	fi;
	e = 0; j = 0; gone = false
}

proctype Node(byte n) {
	byte e, j;
	bool gone;
end:
	do
	/* A heartbeat: the time is remembered before the publish, which may take any time, or never be stored. */
	:: d_step { sent[n] < BEATS && now < END ->
		sent[n]++; flying[n] = sent[n]; sentAt[AT(n, sent[n])] = now }
	:: d_step { flying[n] > 0 -> append(BEAT(n), flying[n]); flying[n] = 0 }
	:: d_step { view[n] < last -> view[n]++ }
	:: d_step { pos[n] < view[n] -> deliver(n) }
	/* The node's receipt: sent once the fact is applied, seen by the publisher some time. A later boot speaks for itself only. */
	:: d_step { knows[n] && pos[n] >= seqR && seqR > 0 && !receipt[n] && !restarted[n] -> receipt[n] = true }
	/* kill -9 and a start: the memory is gone, the journal is read again. */
	:: d_step { n == 0 && !restarted[n] ->
		restarted[n] = true; view[n] = 0; pos[n] = 0; knows[n] = false; proven[n] = 0; leaseEnd[n] = 0;
		firstOfBoot[n] = sent[n] + 1; flying[n] = 0 }
	od
}

proctype Publisher() {
	/* The fact is stored, and some time later the publisher's own consumer delivers it. */
#ifdef FENCE_FROM_PUBLISH
	publishedAt = now;
#endif
	d_step { append(FACTS, 0); seqR = last }
	d_step { seenAt = now }
}

proctype Another() {
	d_step { append(FACTS, 0) }
}

proctype Clock() {
end:
	do
	:: d_step { now < END -> now++ }
	od
}

#if NODES > 1
#define forall(p) (p(0) && p(1))
#else
#define forall(p) (p(0))
#endif
#define cutOrFenced(n) (receipt[n] || fenced(n))
#ifdef SILENT_IS_DONE
#define done(n) (receipt[n] || (seenAt != NEVER && now >= FENCE))   /* time is over: done */
#define verdict forall(done)
#else
#define verdict forall(cutOrFenced)
#endif

proctype Monitor() {
end:
	do
	:: fenced(0) && accepts(0) -> assert(false)                     /* G6 */
#if NODES > 1
	:: fenced(1) && accepts(1) -> assert(false)                     /* G6 */
	:: verdict && (accepts(0) || accepts(1)) -> assert(false)       /* G7 */
#else
	:: verdict && accepts(0) -> assert(false)                       /* G7 */
#endif
	od
}

init {
	atomic {
		if
		:: serves[0] = true
		:: serves[0] = false
		fi;
		run Node(0);
#if NODES > 1
		run Node(1);
#endif
		run Publisher();
#ifndef ONE_FACT
		run Another();
#endif
		run Clock();
		run Monitor()
	}
}
