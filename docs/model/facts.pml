/*
 * Facts about one principal on their way from publishers to two nodes: by the fast path, which loses, repeats and
 * reorders, and by the journal, which keeps the last message of each subject.
 *
 * G5: what is stored stays in force on every node that has read so far, through restarts; only a reinstate that names
 *     it undoes it, or, for a suspend, its end.
 * G2: what a node has learned by the fast path it never forgets before the journal has it, or something newer stands.
 * And the other way: nobody stays refused without a revoke that somebody has published.
 *
 * The grain is one event of the state machine, which is one goroutine. Messages 0 and 1 are revokes or suspends, in
 * any combination; message 2 is a reinstate.
 */

#ifndef NODES
#define NODES 2
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef MAXSEQ
#define MAXSEQ 5
#endif

#ifndef PUBLISHERS
#define PUBLISHERS 2              /* 1: message 1 is never sent */
#endif
#define BLOCKS 2                  /* messages that block */
#define REINSTATE 2               /* the message that allows */
#define NONE 255

#define REV 0                     /* subjects: pgedge.revoke, .suspend, .reinstate, each with the principal */
#define SUS 1
#define REI 2

bool isSuspend[BLOCKS];           /* what message 0 and 1 are */
bool suspendOver;                 /* the instant named by the suspends has passed */

/* The journal. */
byte last;                        /* seq of the last message */
byte jseq[3];                     /* last seq per subject; 0: none */
byte jmsg[3] = NONE;              /* the message at that seq */
byte jupto;                       /* upto of the reinstate */

/* The nodes. */
bool ready[NODES];
byte pos[NODES];                  /* read so far */
byte tseq[NODES * 3];             /* the table: last seq per subject */
byte tmsg[NODES * 3];
byte tupto[NODES];
byte prov[NODES];                 /* provisional facts, a bit each */
byte seen[NODES];                 /* what the journal has delivered, a bit each */
bool quiet[NODES];                /* the last message delivered said: nothing pending */
byte covered[NODES];              /* provisional facts after which the journal delivered another one on the subject */
byte fast[NODES];                 /* copies on their way by the fast path, a bit each */
byte restarts;

/* What a god sees. */
byte mseq[BLOCKS];                /* the greatest seq a message was stored at */
byte gupto;                       /* the greatest upto that an author of a stored reinstate meant */
bool revokePublished;
byte owed[NODES];                 /* learned by the fast path, neither in the journal nor superseded */
byte bootSeq[NODES * BLOCKS];     /* mseq when the node started */

#define BIT(m) (1 << (m))
#define AT(n, s) ((n) * 3 + (s))
#ifdef ONE_SUBJECT
#define SUBJECT(m) REV
#else
#define SUBJECT(m) (isSuspend[m] -> SUS : REV)
#endif

/* The node's view. */
#define tableBlocks(n) ( \
	(tseq[AT(n, REV)] > tupto[n] && !(isSuspend[tmsg[AT(n, REV)]] && suspendOver && ONE)) || \
	(tseq[AT(n, SUS)] > tupto[n] && !suspendOver))
#define provBlocks(n, m) ((prov[n] & BIT(m)) && !(isSuspend[m] && suspendOver))
#define denies(n) (tableBlocks(n) || provBlocks(n, 0) || provBlocks(n, 1))
#ifdef ONE_SUBJECT
#define ONE true
#else
#define ONE false
#endif

/* The god's. */
#define inForce(m) (mseq[m] > gupto && !(isSuspend[m] && suspendOver))
#define readAll(n) (pos[n] == last)
#define inForceAtBoot(n, m) (bootSeq[(n) * BLOCKS + (m)] > gupto && !(isSuspend[m] && suspendOver))
#define owes(n, m) ((owed[n] & BIT(m)) && !(isSuspend[m] && suspendOver) && (mseq[m] == 0 || mseq[m] > gupto))

/* append stores message m on subject s. */
inline append(m, s) {
	last++;
	jseq[s] = last;
	jmsg[s] = m;
	if
	:: m < BLOCKS -> mseq[m] = last
	:: else
	fi
}

/* A publisher sends once and may die: a bare nats pub. What it has sent may or may not reach each of the ways. */
proctype Publisher(byte m) {
	atomic {
		/* To be lost on the way is not to have been sent. */
		if
		:: fast[0] = fast[0] | BIT(m)
		:: true
		fi;
#if NODES > 1
		if
		:: fast[1] = fast[1] | BIT(m)
		:: true
		fi;
#endif
		if
		:: !isSuspend[m] -> revokePublished = true
		:: else
		fi
	}
	if
	:: atomic { last < MAXSEQ -> append(m, SUBJECT(m)) }
	:: true                       /* no leader, and nobody tries again */
	fi
}

/* The author of the reinstate looks, thinks, and publishes. */
proctype Author() {
	byte upto;
end:	atomic { jseq[REV] + jseq[SUS] > 0 -> upto = (jseq[REV] > jseq[SUS] -> jseq[REV] : jseq[SUS]) }
	if
	:: atomic {
		last < MAXSEQ ->
		append(REINSTATE, REI);
		if
		:: upto > gupto -> gupto = upto
		:: else
		fi;
#ifdef REINSTATE_WITHOUT_UPTO
		jupto = last
#else
		jupto = upto
#endif
		}
	:: true
	fi
}

/* The next message of the journal for a node: the smallest seq beyond its position, of the last ones per subject. */
#define next(n, s) (jseq[s] > pos[n] && (jseq[(s + 1) % 3] <= pos[n] || jseq[(s + 1) % 3] > jseq[s]) \
	&& (jseq[(s + 2) % 3] <= pos[n] || jseq[(s + 2) % 3] > jseq[s]))

#define sameSubject(s) ((SUBJECT(0) == s -> BIT(0) : 0) | (SUBJECT(1) == s -> BIT(1) : 0))

inline learn(n, s) {
	tseq[AT(n, s)] = jseq[s];
	tmsg[AT(n, s)] = jmsg[s];
	pos[n] = jseq[s];
	seen[n] = seen[n] | BIT(jmsg[s]);
	quiet[n] = readAll(n);
	if
	:: s == REI -> tupto[n] = (jupto > tupto[n] -> jupto : tupto[n])
	:: else ->
		/* Settled: the block is in the table, so the provisional fact may go. */
		covered[n] = covered[n] | (prov[n] & ~BIT(jmsg[s]) & sameSubject(s));
		prov[n] = prov[n] & ~BIT(jmsg[s]);
		covered[n] = covered[n] & prov[n];
		owed[n] = owed[n] & ~BIT(jmsg[s])
	fi
}

inline boot(n) {
	ready[n] = false; quiet[n] = false;
	pos[n] = 0;
	tupto[n] = 0;
	prov[n] = 0; seen[n] = 0; covered[n] = 0; owed[n] = 0;
	tseq[AT(n, 0)] = 0; tseq[AT(n, 1)] = 0; tseq[AT(n, 2)] = 0;
	tmsg[AT(n, 0)] = 0; tmsg[AT(n, 1)] = 0; tmsg[AT(n, 2)] = 0;
	bootSeq[n * BLOCKS] = mseq[0];
	bootSeq[n * BLOCKS + 1] = mseq[1]
#ifdef SERVE_BEFORE_REPLAY
	; ready[n] = true
#endif
}

/* A message of the fast path. */
inline takeFast(n, m) {
	if
	:: fast[n] = fast[n] & ~BIT(m)
	:: true                       /* another copy will come */
	fi;
	if
	:: (seen[n] & BIT(m)) == 0 ->
		prov[n] = prov[n] | BIT(m);
		owed[n] = owed[n] | BIT(m)
	:: else
	fi
}

/* storable: the journal has delivered neither it nor, since, another one of its subject. */
#define storable(n, m) (ready[n] && (prov[n] & BIT(m)) && (covered[n] & BIT(m)) == 0)
#define stands(n, m) (tseq[AT(n, SUBJECT(m))] > tupto[n] && !(isSuspend[m] && suspendOver))

/* The node stores a provisional fact itself, expecting what it has applied on that subject. */
inline store(n, m) {
#ifdef NEGATIVE_LOOKUP_DROPS
	/* A replica that lags answers: not there. */
	prov[n] = prov[n] & ~BIT(m)
#else
#ifdef SUSPEND_STORED_AS_REVOKE
	if
	:: jseq[REV] == tseq[AT(n, REV)] -> append(m, REV)
	:: else
	fi
#else
	if
	:: jseq[SUBJECT(m)] == tseq[AT(n, SUBJECT(m))] -> append(m, SUBJECT(m))
	:: else                       /* wrong last sequence: the newer one is on its way */
	fi
#endif
#endif
}

/* Covered and nothing pending: given up while the newer one is in force, stored otherwise. */
inline resolve(n, m) {
	covered[n] = covered[n] & ~BIT(m);
	if
#ifdef GIVE_UP_WHAT_IS_COVERED
	:: true ->
#else
	:: stands(n, m) ->
		owed[n] = owed[n] & ~BIT(m);
#endif
		prov[n] = prov[n] & ~BIT(m)
#ifndef GIVE_UP_WHAT_IS_COVERED
	:: else
#endif
	fi
}

/* A login that the node would let through at this moment, and must not. */
#define admits(n) (ready[n] && !denies(n))
#define g5(n) (!admits(n) || \
	!(readAll(n) && (inForce(0) || inForce(1))) &&            /* what is stored and read is in force */ \
	!inForceAtBoot(n, 0) && !inForceAtBoot(n, 1))             /* nobody is served before the replay */
#define g2(n) (!admits(n) || !owes(n, 0) && !owes(n, 1))      /* what was learned is not forgotten */

proctype Monitor(byte n) {
end:
	do
	:: !g5(n) -> assert(false)            /* G5 */
	:: !g2(n) -> assert(false)            /* G2 */
	od
}

proctype Node(byte n) {
	byte m;
end:
	do
	:: d_step { next(n, REV) -> learn(n, REV) }
	:: d_step { next(n, SUS) -> learn(n, SUS) }
	:: d_step { next(n, REI) -> learn(n, REI) }
	:: d_step { !ready[n] && readAll(n) -> ready[n] = true; quiet[n] = true }
	:: atomic { fast[n] & BIT(0) -> takeFast(n, 0) }
	:: atomic { fast[n] & BIT(1) -> takeFast(n, 1) }
	:: d_step { storable(n, 0) && last < MAXSEQ -> m = 0; store(n, m) }
	:: d_step { storable(n, 1) && last < MAXSEQ -> m = 1; store(n, m) }
	:: d_step { ready[n] && quiet[n] && (covered[n] & BIT(0)) -> m = 0; resolve(n, m) }
	:: d_step { ready[n] && quiet[n] && (covered[n] & BIT(1)) -> m = 1; resolve(n, m) }
	:: d_step { restarts < RESTARTS -> restarts++; boot(n); m = 0 }
	od
}

/* The suspends' end may come at any time; it is the last thing that happens. */
proctype Rest() {
	byte n;
	if
	:: suspendOver = true
	:: true
	fi;
	timeout ->
	d_step {
		suspendOver = true;
		n = 0;
		do
		:: n < NODES ->
			assert(ready[n] && readAll(n));                       /* rest */
			assert(denies(n) || !(inForce(0) || inForce(1)));     /* G5 */
			assert(denies(n) || !(owes(n, 0) || owes(n, 1)));     /* G2 */
			assert(revokePublished || !denies(n));                /* suspends end */
			n++
		:: else -> break
		od
	}
}

init {
	atomic {
		if
		:: isSuspend[0] = true
		:: isSuspend[0] = false
		fi;
#if PUBLISHERS > 1
		if
		:: isSuspend[1] = true
		:: isSuspend[1] = false
		fi;
		run Publisher(1);
#endif
		run Node(0);
#if NODES > 1
		run Node(1);
#endif
		run Publisher(0);
		run Author();
		run Monitor(0);
#if NODES > 1
		run Monitor(1);
#endif
		run Rest()
	}
}
