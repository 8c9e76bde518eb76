/*
 * One node and one fact about one principal: logins of that principal race the application of the fact.
 *
 * G1: once the node has reported the cut, no byte of a session that the fact is about is written.
 * G2: no interleaving of a login and the fact lets the session survive.
 *
 * The grain is one access to shared memory. A callback of an event loop and a posted task exclude each other, and so
 * do a login's write and the cut's visit to the login, by the session's lock.
 */

#ifndef SESSIONS
#define SESSIONS 2
#endif
#ifndef LOOPS
#define LOOPS 2
#endif

#define LOOP(i) ((i) % LOOPS)
#define FACT 1                    /* the fact's seq; 0 is a journal without it */

mtype = { outside, inLogin, enrolling, onLoop, ended };

/* The table of the node. A revoke blocks, a kill does not: it ends what is older. */
bool isRevoke;
byte cutSeq;                      /* 0, or FACT once the fact is in the table */
byte applied;                     /* the journal position that a login takes as its authSeq */
bool held;                        /* a provisional fact refuses logins */

mtype state[SESSIONS];
bool indexed[SESSIONS];           /* the cut finds a session by the index only */
bool gate[SESSIONS];              /* true: shut */
byte authSeq[SESSIONS];
bool checked[SESSIONS];           /* the login has been admitted once */
bool locked[SESSIONS];            /* the session's lock: logins only */
bool busy[LOOPS];                 /* the loop runs a callback or a task */
bool posted[LOOPS];               /* a cut's task waits for the loop */
bool visit[SESSIONS];             /* the cut waits for the login's lock once */
bool reported;                    /* the receipt says: cut */
bool over;                        /* nothing more is applied */

#define forbids(i) (held || (isRevoke && cutSeq > 0) || authSeq[i] < cutSeq)
#define concerned(i) (isRevoke || authSeq[i] < FACT)

/* A byte of session i reaches the operating system. */
inline write(i) {
	assert(!(reported && concerned(i)))   /* G1 */
}

inline lock(x)   { atomic { !x -> x = true } }
inline unlock(x) { x = false }

/* check ends the login if the table or the gate forbids it. */
inline check(i) {
	if
	:: forbids(i) || gate[i] -> goto refused
	:: else
	fi
}

proctype Session(byte i) {
	byte turns = 0;

	authSeq[i] = applied;
	state[i] = inLogin;
#ifdef CHECK_BEFORE_REGISTER
	check(i);
	indexed[i] = true;
#else
	indexed[i] = true;
	check(i);
#endif
	checked[i] = true;

	/* Authentication: bytes go through one wrapper, under the session's lock. */
	lock(locked[i]);
#ifndef NO_GATE_AT_LOGIN
	if
	:: gate[i] -> unlock(locked[i]); goto refused
	:: else
	fi;
#endif
	write(i);
	unlock(locked[i]);

	check(i);                     /* again, before a backend is attached */

	/* The state changes under the lock, so that the cut sees either a login or a session that is being enrolled. */
	lock(locked[i]);
	if
	:: gate[i] -> unlock(locked[i]); goto refused
	:: else
	fi;
	state[i] = enrolling;
	unlock(locked[i]);

	/* OnOpen, the first callback on the loop. */
	lock(busy[LOOP(i)]);
#ifndef NO_CHECK_AT_ENROLL
	if
	:: gate[i] -> unlock(busy[LOOP(i)]); goto refused
	:: else
	fi;
#endif
	state[i] = onLoop;
	unlock(busy[LOOP(i)]);

	/* Relay: the gate is looked at before each write, in one callback. */
	do
	:: turns < 2 ->
		turns++;
		lock(busy[LOOP(i)]);
		if
		:: state[i] == ended -> unlock(busy[LOOP(i)]); goto done
		:: else
		fi;
		if
		:: !gate[i] -> write(i)
		:: else
		fi;
		unlock(busy[LOOP(i)])
	:: break                      /* the session stays, and sends nothing more */
	od;
	goto done;

refused:
	state[i] = ended;
	indexed[i] = false;
done:
	skip
}

/* cut is the order of the state machine, carried out by the engine. seq 0: all matches that exist now. */
inline cut(seq) {
	k = 0;
	do
	:: k < SESSIONS ->
		if
		:: indexed[k] && state[k] != ended && (seq == 0 || authSeq[k] < seq) -> gate[k] = true
		:: else
		fi;
		k++
	:: else -> break
	od;
	k = 0;
	do
	:: k < SESSIONS ->
		atomic {
			if
			:: indexed[k] && gate[k] && state[k] == inLogin -> visit[k] = true
			:: indexed[k] && gate[k] && (state[k] == enrolling || state[k] == onLoop) -> posted[LOOP(k)] = true
			:: else
			fi;
			k++
		}
	:: else -> break
	od;
#ifndef CUT_BEFORE_LOOPS
	do
	:: posted[0] -> skip; !posted[0]
#if LOOPS > 1
	:: posted[1] -> skip; !posted[1]
#endif
	:: else -> break
	od;
#endif
	k = 0;
	do
	:: k < SESSIONS ->
		if
		:: visit[k] ->
#ifndef CUT_WITHOUT_LOGINS
			lock(locked[k]); unlock(locked[k]);
#endif
			visit[k] = false
		:: else
		fi;
		k++
	:: else -> break
	od
}

/* A loop's posted task: switches interest off and ends the sessions whose gate is shut. */
proctype Loop(byte l) {
	byte j;
end:
	do
	:: posted[l] ->
		lock(busy[l]);
		j = 0;
		do
		:: j < SESSIONS ->
			atomic {
				if
				:: LOOP(j) == l && gate[j] && state[j] == onLoop -> state[j] = ended; indexed[j] = false
				:: else
				fi;
				j++
			}
		:: else -> break
		od;
		posted[l] = false;
		unlock(busy[l])
	od
}

/* The fact arrives by the fast path first, or by the journal alone. */
proctype Apply() {
	byte k;
	if
	:: isRevoke = true
	:: isRevoke = false
	fi;
	if
	:: held = true;
		cut(0);
		if
		:: !isRevoke -> held = false      /* the hold of a kill is bounded, and may end before the journal delivers */
		:: true
		fi
	:: skip
	fi;
#ifdef POSITION_BEFORE_TABLE
	applied = FACT;
	cutSeq = FACT;
#else
	cutSeq = FACT;
	applied = FACT;
#endif
	held = false;
	cut(FACT);
	reported = true;
	over = true
}

/* G2, when everything has come to rest: whoever was admitted and is forbidden has been ended. */
proctype Rest() {
	byte r;
	timeout ->
	assert(over);
	r = 0;
	do
	:: r < SESSIONS ->
		assert(!(state[r] != ended && checked[r] && concerned(r)));   /* G2 */
		assert(!(gate[r] && state[r] != ended));                      /* G2 */
		r++
	:: else -> break
	od
}

init {
	byte i = 0;
	atomic {
		do
		:: i < SESSIONS -> state[i] = outside; run Session(i); i++
		:: else -> break
		od;
		i = 0;
		do
		:: i < LOOPS -> run Loop(i); i++
		:: else -> break
		od;
		run Apply();
		run Rest()
	}
}
