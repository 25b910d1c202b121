"""The registry of robots, as LeRobot 0.6.1 has it."""


class RobotConfig:
    _choices = {}

    @classmethod
    def register_subclass(cls, name):
        def register(kind):
            cls._choices[name] = kind
            return kind

        return register

    @classmethod
    def get_known_choices(cls):
        return dict(cls._choices)


def make_robot_from_config(config):
    return config.make()
