import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments import cli, schema

schema.register()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def main(config: DictConfig) -> None:
    run = OmegaConf.to_object(config)
    print(type(run), HydraConfig.get().runtime.output_dir)


if __name__ == "__main__":
    cli.run(main)
