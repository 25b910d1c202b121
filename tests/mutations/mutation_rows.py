"""Mutations: one line of the program broken at a time, and the tests that must fail then.

Each row names a file, a text that stands in it exactly once, what it becomes, and where the tests are that
notice. `run_mutations.py` applies them one by one in a copy; `tests/test_mutations.py` holds the rows to the
code. Choose what a person might write by mistake, not what no one would.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change that a test must notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CONTROLLER = ("tests/runtime/test_controller.py", "tests/runtime/test_controller_faults.py")
UNATTENDED = ("tests/runtime/test_unattended.py",)
SAFETY = ("tests/runtime/test_safety.py",)
WATCHDOG = ("tests/runtime/test_watchdog.py", *CONTROLLER)
CHUNKING = ("tests/runtime/test_chunking.py",)
INFERENCE = ("tests/runtime/test_inference.py",)
CLOCK = ("tests/runtime/test_clock.py", "tests/runtime/test_controller.py")
STATES = ("tests/runtime/test_states.py",)
FILES = ("tests/test_files.py",)
WIRE = ("tests/policies/test_wire.py",)
TRAINER = ("tests/training/test_resume.py", "tests/training/test_trainer.py")
BUNDLE = ("tests/policies/test_bundle.py",)
TERMINAL = ("tests/experiments/test_control_terminal.py",)

_RUNTIME = "policies/runtime/"

CONTROL_LOOP = [
    Mutation(_RUNTIME + "controller.py", "                self._abandon(error)\n", "", CONTROLLER),
    Mutation(
        _RUNTIME + "controller.py",
        "        problem = self._stop_robot_anyhow()\n        self._is_braking = self._is_commanded = False\n"
        "        is_person",
        '        problem = ""\n        self._is_braking = self._is_commanded = False\n        is_person',
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        except Exception as error:  # noqa: BLE001  anything",
        "        except OSError as error:  # noqa: BLE001  anything",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        self._obey_emergency_stop()  # pressed since the period began\n",
        "",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "            if self._is_braking:  # stopped already, but gently\n",
        "            if False:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        if event in (Event.ESTOP, Event.FAULT):\n",
        "        if event is Event.ESTOP:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "            self._is_braking = True\n",
        "            self._is_braking = False\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        if self._is_braking and self._safety.is_at_rest:\n",
        "        if self._is_braking:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        if verdict.level is not Level.OK or not is_live:\n",
        "        if verdict.level is not Level.OK:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        if self._is_braking:\n            raise ArmingRefused",
        "        if False:\n            raise ArmingRefused",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        self._unreadable_since = None\n        try:\n",
        "        try:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "            verdict = Verdict(level=Level.STOP, reason=self._recorder.problem)\n",
        "            verdict = Verdict(level=Level.OK, reason=self._recorder.problem)\n",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        if self.state in _ACTIVE and self._sees(now):\n",
        "        if self.state in _ACTIVE:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        return verdict.level is Level.OK\n",
        "        return verdict.level <= Level.HOLD\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "controller.py",
        "        self._estop_reason = reason\n        self._estop.set()\n        self._stop_robot_anyhow()\n",
        "        self._estop_reason = reason\n        self._estop.set()\n",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "hang_guard.py",
        "            if hung_s > self._limit_s:\n",
        "            if hung_s > 1e9 * self._limit_s:\n",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "background.py",
        "len(self._jobs) >= self._max_waiting:\n",
        "len(self._jobs) > 10 * self._max_waiting:\n",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "recorder.py",
        "        self._worker.offer(self._write_oldest)\n",
        "        self._write_oldest()\n",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "recorder.py",
        "        if len(self._unwritten) >= self._max_unwritten:\n",
        "        if len(self._unwritten) >= 10 * self._max_unwritten:\n",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "recorder.py",
        "self._num_dumps >= _MAX_DUMPS or",
        "self._num_dumps >= 10 * _MAX_DUMPS or",
        UNATTENDED,
    ),
    Mutation(
        _RUNTIME + "chunk_queue.py",
        "        begins = chunk.stamp + stood_s\n",
        "        begins = chunk.stamp\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "chunk_queue.py",
        "            self._stands_from, self._stands_to = now, math.inf\n",
        "            pass\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "chunk_queue.py",
        "        self._gate.reset(next_seq=self._last_seq + 1)\n",
        "",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "execution.py",
        "            return Execution(target, self._safety.hold(), str(refusal))\n",
        '            return Execution(target, self._safety.hold(), "")\n',
        CONTROLLER,
    ),
    Mutation(
        "experiments/controlled_run.py",
        "        self._controller.press_emergency_stop()\n",
        "        pass\n",
        TERMINAL,
    ),
    Mutation(
        "experiments/config/cli.py",
        "*(() if is_ignored else (signal.SIGHUP,))",
        "*()",
        TERMINAL,
    ),
    Mutation(
        "experiments/controlled_run.py",
        "        self.num_dropped += not self._worker.offer(lambda: _write_all(self._file, data))\n",
        "        _write_all(self._file, data)\n",
        TERMINAL,
    ),
]

LIMITS = [
    Mutation(
        _RUNTIME + "safety.py",
        "        if not np.isfinite(request).all():\n",
        "        if np.isnan(request).all():\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "        if request.shape != self._position.shape:\n",
        "        if request.ndim != 1:\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "            position = np.where(self._gripper, self._position, position)\n",
        "            pass\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "            if not excess <= _START_TOLERANCE:\n",
        "            if not excess <= 10 * _START_TOLERANCE:\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "        target = np.clip(wanted, low, high)\n",
        "        target = wanted\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "        allowed = stops.feasible\n",
        "        allowed = np.ones_like(stops.feasible)\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "        stop = np.where(found[:, None], stops.positions[best, each], later)\n",
        "        stop = np.where(found[:, None], chosen[:, None], later)\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "        later = np.concatenate([self._stop[:, 1:], self._stop[:, -1:]], axis=1)\n"
        "        return self._emit(self._stop[:, 0], later, ())\n",
        "        return self._emit(self._stop[:, -1], self._stop, ())\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "float(state[index]) - self._limits.max_tracking_error)\n",
        "-np.inf)\n",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "        allowed = allowed & ~(pulled & past)\n",
        "",
        SAFETY,
    ),
    Mutation(
        _RUNTIME + "safety.py",
        "                if ratio > allowed:\n",
        "                if ratio > 100 * allowed:\n",
        SAFETY,
    ),
    Mutation(_RUNTIME + "braking.py", "            (self._jerk, limits.jerk),\n", "", SAFETY),
    Mutation(
        _RUNTIME + "states.py",
        "    State.STOPPED: {Event.FAULT: State.FAULT, Event.REARM: State.ARMED},\n",
        "    State.STOPPED: {Event.FAULT: State.FAULT, Event.REARM: State.RUNNING},\n",
        STATES,
    ),
    Mutation(
        _RUNTIME + "states.py",
        "    State.FAULT: {Event.REARM: State.ARMED},\n",
        "    State.FAULT: {Event.REARM: State.ARMED, Event.CLEAR: State.RUNNING},\n",
        STATES,
    ),
]

WATCH = [
    Mutation(
        _RUNTIME + "watchdog.py",
        "    stalest, stamp = min(health.sensor_stamps.items(), key=lambda item: item[1])\n",
        "    stalest, stamp = max(health.sensor_stamps.items(), key=lambda item: item[1])\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "    if age > limits.observation_hold_s:\n",
        "    if age > limits.observation_stop_s:\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "        return Verdict(level=Level.FAULT, reason=health.stream.state_jump)\n",
        "        return Verdict(level=Level.HOLD, reason=health.stream.state_jump)\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "        level = Level.STOP if now - health.blind_since > limits.blind_stop_s else Level.HOLD\n",
        "        level = Level.HOLD\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "now - health.waiting_since > limits.silent_stop_s:\n",
        "now - health.waiting_since > 1e9:\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "    if health.missed_share >= limits.missed_stop_share:\n",
        "    if health.missed_share > 1.0:\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "now - health.unreadable_since > limits.unreadable_fault_s:\n",
        "now - health.unreadable_since > 1e9:\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "    return max(verdicts, key=lambda verdict: verdict.level)\n",
        "    return verdicts[0]\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "watchdog.py",
        "    return observation if observation.level >= inference.level else inference\n",
        "    return observation\n",
        WATCHDOG,
    ),
    Mutation(
        _RUNTIME + "clock.py",
        "        return time.monotonic()\n",
        "        return time.time()\n",
        CLOCK,
    ),
    Mutation(
        _RUNTIME + "clock.py",
        "            self._due += skipped * self._period_s\n",
        "            self._due = now\n",
        CLOCK,
    ),
    Mutation(
        _RUNTIME + "clock.py",
        "            self._recent.append(is_late)\n",
        "            self._recent.append(False)\n",
        CLOCK,
    ),
    Mutation(
        _RUNTIME + "inference.py",
        "        if result.seq <= self._last_seq:\n",
        "        if result.seq < self._last_seq:\n",
        INFERENCE,
    ),
    Mutation(
        _RUNTIME + "inference.py",
        "        if result.seq < self._first_seq:\n",
        "        if False:\n",
        INFERENCE,
    ),
    Mutation(
        _RUNTIME + "inference.py",
        "        if not np.isfinite(actions).all():\n",
        "        if np.isnan(actions).all():\n",
        INFERENCE,
    ),
    Mutation(
        _RUNTIME + "inference.py",
        "                self._has_died = not self._is_closing\n",
        "                self._has_died = False\n",
        INFERENCE,
    ),
    Mutation(
        _RUNTIME + "chunking.py",
        "        index = self._periods_since(self._chunk.stamp, now)\n"
        "        if index >= len(self._chunk.actions):\n",
        "        index = self._periods_since(self._chunk.stamp, now) + 1\n"
        "        if index >= len(self._chunk.actions):\n",
        CHUNKING,
    ),
    Mutation(
        _RUNTIME + "chunking.py",
        "            actions = np.concatenate([kept, chunk.actions[len(kept) :]])\n",
        "            actions = chunk.actions\n",
        CHUNKING,
    ),
    Mutation(
        _RUNTIME + "observation_buffer.py",
        "            if min(passed) < 0 or max(passed) <= 0:\n",
        "            if max(passed) <= 0:\n",
        CONTROLLER,
    ),
    Mutation(
        _RUNTIME + "observation_buffer.py",
        "(len(spec.state),) or not np.isfinite(state).all():\n",
        "(len(spec.state),):\n",
        CONTROLLER,
    ),
]

WRITTEN = [
    Mutation(
        "vla/files.py",
        "        publish_file(staging, final)\n    finally:\n",
        "    finally:\n        publish_file(staging, final)\n",
        FILES,
    ),
    Mutation(
        "vla/files.py",
        '        self._file.truncate(path.read_bytes().rfind(b"\\n") + 1)\n',
        "",
        FILES,
    ),
    Mutation(
        "vla/files.py",
        "                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "                pass\n",
        FILES,
    ),
    Mutation(
        "vla/files.py",
        "        if name in links:\n",
        "        if False:\n",
        FILES,
    ),
    Mutation(
        "vla/files.py",
        '    faults = [f"extra: {name}" for name in extra]\n',
        "    faults = []\n",
        FILES,
    ),
    Mutation(
        "vla/training/checkpoint.py",
        "    with staging_directory(directory) as staging:\n",
        "    directory.mkdir(parents=True, exist_ok=True)\n    for staging in [directory]:\n",
        TRAINER,
    ),
    Mutation(
        "vla/training/checkpoint.py",
        "    if left and not may_drop:\n",
        "    if False:\n",
        TRAINER,
    ),
    Mutation(
        "vla/training/checkpoint.py",
        "    if keep == -1:\n        return\n",
        "",
        TRAINER,
    ),
]

MESSAGES = [
    Mutation(
        "policies/serving/wire.py",
        "    if len(data) > limits.max_bytes:\n",
        "    if False:\n",
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "        if depth >= self._limits.max_depth:\n",
        "        if depth >= 10**6:\n",
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "    if name not in DTYPES:\n",
        '    if name == "|O":\n',
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "    if math.prod(shape) > limits.max_elements:\n",
        "    if np.prod(shape) > limits.max_elements:\n",
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "            if key in entries:\n",
        "            if False:\n",
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "    if reader.at != len(data):\n",
        "    if False:\n",
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "        if length * values_each > len(self._view) - self.at:\n",
        "        if False:\n",
        WIRE,
    ),
    Mutation(
        "policies/serving/wire.py",
        "    if expected != len(data):\n",
        "    if expected > len(data):\n",
        WIRE,
    ),
]

MUTATIONS = [*CONTROL_LOOP, *LIMITS, *WATCH, *WRITTEN, *MESSAGES]
