#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The tests, tested: each bug that the project can be built with (IPC_PLANT_<NAME>) must be found by the test named here,
# and only that is built and run. A bug that none finds fails this script. The bugs of the lane stand in stress/plant.sh,
# which needs no build folder; without names they are tried, too.
#
# Bugs are planted in a copy of the sources (build/plant/source): so only the files that a bug is in are compiled again.
#
# plant.sh [NAME...]: only these.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

# Bug, the test that finds it (a name of ctest's), and what is wrong.
plants='
NOTICE_ONCE          crash-broker-kill    a notice that may not have gone out is not sent again by the next ipcd
CONSUMED_EARLY       crash-broker-kill    a request is taken out of the socket before its answer is in it
KEPT_FOREVER         crash-broker-kill    a descriptor is not removed from the store
CHARGE_FORGOTTEN     crash-broker-kill    the next ipcd does not charge a pairing to its user
LANE_UNJOINED        proc-restart         a lane that is complete is not marked so
ANSWERED_EARLY       crash-broker-kill    the answer goes out before the lane is committed in the registry
MADE_TWICE           crash-broker-kill    what was made and not answered is made again
NUDGE_FORGOTTEN      crash-broker-kill    mail that was not counted up before the kill is not made up for
END_FORGOTTEN        crash-broker-kill    a removal that was marked as done, and no more, is not made by the next ipcd
LEFT_OPEN            crash-broker-kill    descriptors without a record stay open
STORE_UNREAD         proc-restart         ipcd-run restarts ipcd before it has read all that it was to keep
PIDFD_UNWATCHED      proc-restart-state   the next ipcd does not look at the pidfds of its sessions
TAKEN_TWICE          torture-torture      the next ipcd takes from a lane what the one before took
CURSOR_EARLY         torture-torture      a message is confirmed before it is in the queue
END_LATE             torture-torture      a record is committed before what ends a scan behind it
CURSOR_RESET         unit-broker-route    the next ipcd reads the lanes from where they begin
MARK_FORGOTTEN       unit-broker-route    what may be in a chunk is not marked: the next ipcd delivers before it has found what comes first
ACK_UNSTORED         unit-broker-route    an acknowledgement is not stored
RETURN_UNSTORED      unit-broker-route    that a message came back is not stored
DELIVERED_LATE       torture-torture      a delivery is sent before it is stored
REDELIVERY_FORGOTTEN unit-broker-route    what a dead consumer had is not delivered again
ATTEMPT_FORGOTTEN    unit-broker-route    a redelivery is not counted
DRAIN_FORGOTTEN      torture-torture      what a dead session had written is not read
ID_FORGOTTEN         torture-torture      a message id is not remembered
KEY_IGNORED          torture-torture      messages of one key go to several consumers at a time
KEY_STRANDED         unit-broker-route    a message of a key that was passed by one that came back is never delivered
VERDICT_FORGOTTEN    torture-torture      a message is refused without a word
LETTER_EARLY         unit-broker-route    a dead letter is delivered before the queue it comes from has let go of it
LETTER_TRUSTED       unit-broker-route    the same by the next ipcd
DIVERTED_TRUSTED     unit-broker-route    what a full queue diverted is delivered by the next ipcd, whatever the queue did
ROUTER_NO_RELOOK     unit-broker-route    a router does not look again before it sleeps
RENEW_FORGOTTEN      proc-policy          a reader that may not read any more sees on what is written into its lane
MATCH_UNCHECKED      proc-policy          a wildcard gets topics that its user may not read
HALF_SESSION         proc-restart-state   a session whose descriptors were not kept goes on
SLOT_EARLY           proc-broker-pairing  a slot is used again before the writer has confirmed that its reader left
DEATH_UNHEARD        proc-topic-death     nobody is woken for a peer that died (between commit and ring, say)
RING_FORGOTTEN       proc-topic-death     who sleeps on what was published with more to come is never woken
QUOTA_KEPT           proc-broker-limits   a lane that ends is charged for ever
SHARE_IGNORED        unit-broker-quota    one user may take all that all users have together
ACTOR_IGNORED        unit-broker-quota    one publisher may take all pairings of a reader
ACTOR_WRONG          proc-broker-users    a pairing is charged on behalf of the wrong user
READER_PAYS          proc-broker-users    the reader that left pays for the writer that does not confirm it
PAIRING_NOT_RETURNED proc-broker-users    a pairing that ends is charged for ever
SESSION_NOT_RETURNED unit-broker-rounds   a session that ends is charged for ever
SLOTS_UNLIMITED      proc-broker-users    one user may take all slots of a lane
BUDGET_IGNORED       unit-broker-rounds   the requests of a user are worked on whatever they cost
GENERATION_UNCHECKED proc-connection      a forked child uses the handles of its parent
SERVICE_NOT_RENEWED  proc-service-restart a service does not go on after a restart of ipcd
SEGMENTS_KEPT        proc-reconnect       a reconnected connection takes a segment of the broker that died for one that is there
NET_UNCOUNTED        hostile-words        a sleeper that nobody woke does not count that
REPLY_TO_ANY         proc-service         a reply is handed to a call that it does not belong to
REPLY_WRONG_CALL     proc-service         a server replies to another call than that which it was handed
RETRY_UNASKED        proc-service         a call is made again that the caller did not say may be
JOIN_MISSED          fault-broker         a pairing that could not be made for want of memory is forgotten
POISON_UNSEEN        fault-takeover       a request that kills each ipcd is worked on without end
REFUSAL_UNTOLD       proc-restart         ipcd does not hear of a descriptor that ipcd-run could not keep
RING_REFUSED         fault-client         a bell that the kernel had no memory for counts as rung
STARTED_WITHOUT      fault-run            ipcd goes on without what it could not get
PERMITS_KEPT         proc-segment         the permits of a holder that died do not return
NUDGE_ALWAYS         hostile-socket       a writer that confirms a reader again and again keeps it awake
DETACH_OTHERS        hostile-socket       a session ends the pairings of others
RIGHTS_TAKEN         hostile-descriptors  the core takes a descriptor whose last close waits
DESCRIPTORS_IGNORED  hostile-descriptors  what a client sent along stays open
MODE_OPEN            hostile-descriptors  a segment can be reopened for writing by other users
NOT_PUNCHED          hostile-descriptors  a descriptor that was kept keeps the memory
SEALS_UNSEEN         hostile-descriptors  a segment that can still be truncated is mapped
SIZE_UNCHECKED       hostile-words        a record may reach beyond the ring
NUMBERS_BACK         hostile-words        the number of a record goes back
REASON_OVERWRITTEN   hostile-words        a reader that lies is told that it was slow
CURSOR_UNCHECKED     hostile-words        the cursor of a reader is taken as it is
RING_BLOCKS          hostile-bells        a full bell holds up whoever rings it
DRAIN_WITHOUT_END    unit-lane-wait       a bell rung without end keeps its reader from reading
SPOILED_ALWAYS       hostile-bells        bells that are shut down are asked for without end
RULES_UNASKED        proc-gateway-zmq     a peer of ipcd-zmq may do what its rules deny
RULES_KEPT           proc-gateway-zmq     what other rules deny goes on
PLAIN_UNASKED        proc-gateway-zmq     a plain subscriber gets what the rules deny
ROUTING_CHOSEN       proc-gateway-zmq     a peer may have the routing id of another one
TEXTS_LOST           proc-gateway-zmq     what somebody subscribes to is passed over beside what no SUB sends
PEER_UNASKED         proc-gateway-zmq     a peer is not asked whether it is still there
CREDIT_ENDLESS       proc-gateway-zmq     more messages come than the peer gave credit for
MQUEUE_UNASKED       proc-gateway-mq      a message is acknowledged before the mqueue has taken it
MQUEUE_LEFT          proc-gateway-mq      an mqueue that the gateway made stays
BINDING_FORGOTTEN    proc-gateway-mq      what was bound at run time does not survive a kill of the gateway
'

build=$PWD/build/plant/core source=$PWD/build/plant/source

wanted() { # NAME
    ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $1 "* ]]
}

compile() { # TEST...
    ninja -C "$build" ipcd ipcd-run ipcctl ipcd-mq ipcd-zmq "${@/#proc-gateway-zmq/ipcd-zmq}" >"$build/log" 2>&1 </dev/null || {
        tail -n 30 "$build/log"
        exit 1
    }
}

# Plant it in the copy, or (LINES is empty) take it out again.
plant() { # NAME LINES
    local file
    grep -rl "\bIPC_PLANT_$1\b" --include='*.[ch]' broker libipc proto >"$build/files" || {
        printf 'plant: no code has the bug %s\n' "$1"
        exit 1
    }
    while read -r file; do
        { printf '%s' "$2" && cat "$file"; } >"$source/$file"
    done <"$build/files"
}

# Does the test fail? That it takes too long is no finding: a test that waits in vain says so itself, before that. What a
# test leaves behind when it fails is ended with it, and may have kept ctest waiting.
finds() { # TEST LOG
    local found=0 session
    setsid ctest --test-dir "$build" -R "^$1\$" --no-tests=error --output-on-failure -Q --output-log "$2" </dev/null &
    session=$!
    wait "$session" || found=1
    pkill -KILL -s "$session" || true
    ((found)) || return 1
    grep -q '^The following tests FAILED' "$2" || {
        cat "$2"
        exit 1
    }
    ! grep -q '(Timeout)$' "$2" || grep -qE '^(watchdog: no progress|\[  FAILED  \])' "$2"
}

only=("$@")
begin=$SECONDS
((${#only[@]})) || tests/stress/plant.sh
rm -rf "$source"
mkdir -p "$source" "$build"
tar --exclude=./build --exclude=./.git -cf - . | tar -xmf - -C "$source"
cmake --preset dev -S "$source" -B "$build" -DIPC_PLANT=NONE -DIPC_WERROR=OFF -DIPC_BENCH=OFF -DIPC_EXAMPLES=OFF >"$build/log" 2>&1 </dev/null || {
    tail -n 30 "$build/log"
    exit 1
}

# What finds a bug must find none where there is none.
mapfile -t tests < <(while read -r name test _; do if [[ -n $name ]] && wanted "$name"; then echo "$test"; fi; done <<<"$plants" | sort -u)
((${#tests[@]})) || {
    printf 'plant: none of these is a bug: %s\n' "$*"
    exit 1
}
compile "${tests[@]}"
IPC_FAULT_BRIEF=1 ctest --test-dir "$build" -j 2 -R "^($(IFS='|' && echo "${tests[*]}"))\$" --output-on-failure -Q --output-log "$build/none.log" </dev/null || {
    cat "$build/none.log"
    printf 'plant: a test fails without any bug planted\n'
    exit 1
}

tried=0 survived=()
while read -r name test what; do
    if [[ -z $name ]] || ! wanted "$name"; then continue; fi
    start=$SECONDS how=caught
    plant "$name" "#define IPC_PLANT_$name 1"$'\n#line 1\n'
    compile "$test"
    IPC_KILL_FULL=1 IPC_TORTURE_SECONDS=20 IPC_TORTURE_CORE_MS=100 finds "$test" "$build/$name.log" || {
        how=SURVIVED
        survived+=("$name")
    }
    plant "$name" ''
    tried=$((tried + 1))
    printf '%-21s %-9s %-20s %4d s  %s\n' "$name" "$how" "$test" $((SECONDS - start)) "$what"
done <<<"$plants"
printf '%d planted, %d survived, %d s: %s\n' "$tried" "${#survived[@]}" $((SECONDS - begin)) "${survived[*]:-all were caught}"
((${#survived[@]} == 0))
