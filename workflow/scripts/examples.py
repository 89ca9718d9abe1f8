"""Draw restorations of one dataset side by side, another image for every problem."""

from pathlib import Path

from rerg.figures import examples, save_figure
from rerg.files import restorations_of
from rerg.images import open_images
from rerg.scores import images_of
from rerg.script import logged

with logged(snakemake.log[0]):
    params, source = snakemake.params, snakemake.input
    observations = {
        path.stem: path for folder in source.observations for path in Path(folder).glob("*.npz")
    }
    rows = {}
    with open_images(source.images) as file:
        images = sorted(file)
        for number, problem in enumerate(params.examples):
            image = images[number % len(images)]
            # The rule names the folders of one seed.
            found = restorations_of(problem, source.restorations)
            restorations = {method: path for (method, _), path in found.items()}
            rows[problem] = images_of(image, file[image][()], observations[problem], restorations)
    figure = examples(rows, params.methods, params.problems)
    save_figure(figure, Path(snakemake.output.pdf), Path(snakemake.output.png))
