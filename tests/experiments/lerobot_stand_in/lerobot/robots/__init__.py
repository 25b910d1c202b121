"""The registry of robots, as LeRobot 0.6.1 has it."""

_CHOICES = {}


class RobotConfig:
    @classmethod
    def register_subclass(cls, name):
        def register(kind):
            _CHOICES[name] = kind
            return kind

        return register

    @classmethod
    def get_known_choices(cls):
        return dict(_CHOICES)


def make_robot_from_config(config):
    return config.make()
