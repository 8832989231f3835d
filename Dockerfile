# The image of server, parent and workers: the packages of requirements.lock and the script cxr. The project's code is
# not in it: a container clones that when it starts. docs/how-to/docker.md
FROM python:3.11.15-slim-bookworm

# g++ is what torch.compile compiles with on a GPU. No versions: Debian keeps one of each, the one with the fixes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/retrain
COPY Makefile requirements.lock ./
COPY flows/commands/launcher.py flows/commands/
RUN PIP_NO_CACHE_DIR=1 make install

# A new volume takes owner and mode from the folder that it is mounted on. The checkout is mounted from the
# host: USER_ID may read it, and git is told to trust it, whoever owns it. USER_ID may be root's 0.
ARG USER_ID=1000
RUN useradd --non-unique --uid "$USER_ID" --create-home retrain \
 && install --directory --owner=retrain /srv/retrain /srv/origin /home/retrain/.prefect \
 && git config --system safe.directory /srv/checkout
COPY docker/entrypoint.sh docker/share.sh /usr/local/bin/

USER $USER_ID
WORKDIR /srv/retrain
ENV HOME=/home/retrain PATH=/opt/retrain/.venv/bin:$PATH
ENTRYPOINT ["entrypoint.sh"]
