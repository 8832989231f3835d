# The image of server, parent and workers: the packages in requirements.lock and the script cxr. It does not contain the
# project's code, which a container clones when it starts. See docs/how-to/docker.md.
FROM python:3.11.15-slim-bookworm

# torch.compile needs g++ on a GPU. Versions are not pinned: Debian offers only the one with security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/retrain
COPY Makefile requirements.lock ./
COPY flows/commands/launcher.py flows/commands/
RUN PIP_NO_CACHE_DIR=1 make install

# A new volume gets the owner and mode of the folder that it is mounted on. The checkout is mounted from the host:
# USER_ID must be able to read it, and git trusts it whoever owns it. USER_ID may be 0, which is root.
ARG USER_ID=1000
RUN useradd --non-unique --uid "$USER_ID" --create-home retrain \
 && install --directory --owner=retrain /srv/retrain /srv/origin /home/retrain/.prefect \
 && git config --system safe.directory /srv/checkout
COPY docker/entrypoint.sh docker/share.sh /usr/local/bin/

USER $USER_ID
WORKDIR /srv/retrain
ENV HOME=/home/retrain PATH=/opt/retrain/.venv/bin:$PATH
ENTRYPOINT ["entrypoint.sh"]
